"""The stems against loops over pixels, their sizes, what a token sees, and what is refused."""

import math

import numpy as np
import pytest
import torch

from fit_model.optimize import parameter_groups
from fit_model.stems import BatchNorm, build_stem, read_stem
from tests.fit_model.examples import randomize

BANDS, WIDTH = 3, 16
CONVOLUTIONS = [("convolutions", patch_px) for patch_px in (1, 2, 4, 8)]
XCIT = [(f"xcit@norm={norm}", patch_px) for patch_px in (2, 4, 8) for norm in ("group", "batch")]
EVERY = [("linear", 4), ("linear@norm=none", 4), *CONVOLUTIONS, *XCIT, ("xcit", 16)]


def stem_of(stem: str, patch_px: int) -> torch.nn.Module:
    made = build_stem(stem, patch_px=patch_px, bands=BANDS, width=WIDTH)
    return randomize(made).double().eval()


def squares(side_px: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, side_px, side_px, BANDS, dtype=torch.float64)


def convolved(image: np.ndarray, weight: np.ndarray, *, stride: int) -> np.ndarray:
    """One square [rows, columns, channels], a place and an offset at a time."""
    rows, columns, _ = image.shape
    found = np.zeros((math.ceil(rows / stride), math.ceil(columns / stride), len(weight)))
    for row, column in np.ndindex(found.shape[:2]):
        for down, right in np.ndindex(3, 3):
            y, x = row * stride + down - 1, column * stride + right - 1
            if 0 <= y < rows and 0 <= x < columns:
                found[row, column] += weight[:, :, down, right] @ image[y, x]
    return found


@pytest.mark.parametrize(("stem", "patch_px"), [*CONVOLUTIONS, *XCIT, ("xcit", 16)])
@torch.no_grad()
def test_a_convolutional_stem_is_its_loop_over_pixels(stem, patch_px):
    made = stem_of(stem, patch_px)
    layers = list(made.layers)
    strides = {1: [1, 1, 1], 2: [2, 1, 1], 4: [2, 2, 1], 8: [2, 2, 2]}.get(patch_px)
    square = squares(2 * patch_px, count=1)
    image = square[0].numpy()
    if stem == "convolutions":
        for layer, stride in zip(layers, strides, strict=True):
            image = convolved(image, layer.weight.numpy(), stride=stride) + layer.bias.numpy()
    else:
        assert len(layers) == 3 * round(math.log2(patch_px)) - 1
        for number in range(0, len(layers), 3):
            if number:
                image = image * 0.5 * (1 + np.vectorize(math.erf)(image / math.sqrt(2)))
            norm = layers[number + 1]
            image = convolved(image, layers[number].weight.numpy(), stride=2)
            if "batch" in stem:  # fresh running figures: mean 0, variance 1
                scale, mean, var = norm.gain, 0.0, 1.0
            else:
                scale, mean, var = norm.weight, image.mean(), image.var()
            image = (image - mean) / np.sqrt(var + 1e-5) * scale.numpy() + norm.bias.numpy()
    np.testing.assert_allclose(made(square)[0], image.reshape(4, WIDTH), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("stem", "patch_px"), EVERY)
def test_a_stem_gives_a_token_a_patch_in_any_rectangle(stem, patch_px):
    made = stem_of(stem, patch_px).float()
    tokens = made(squares(3 * patch_px)[:, : 2 * patch_px])
    assert tokens.shape == (2, 6, WIDTH)
    assert tokens.dtype == torch.float32


def test_the_linear_stem_of_vision_transformers_is_a_dense_layer_of_each_patch():
    made, square = stem_of("linear@norm=none", 4), squares(8)
    patch = square[1, 4:, :4].reshape(-1)
    torch.testing.assert_close(made(square)[1, 2], made.project(patch))
    normed = stem_of("linear", 4)
    torch.testing.assert_close(normed(square)[1, 2], normed.norm(normed.project(patch)))
    assert normed.state_dict().keys() == {
        "project.weight", "project.bias", "norm.weight", "norm.bias"
    }  # fmt: skip


def size(stem: str, *, patch_px: int, bands: int = 3, width: int = 128) -> int:
    made = build_stem(stem, patch_px=patch_px, bands=bands, width=width)
    return sum(each.numel() for each in made.parameters())


def test_sizes_are_those_of_the_papers():
    plain = size("linear@norm=none", patch_px=1)
    assert plain == 512
    assert size("convolutions", patch_px=1) - plain == 92_736
    xcit = 648 + 10_368 + 41_472 + 165_888 + 2 * (24 + 48 + 96 + 192)  # of width 192
    assert size("xcit@norm=batch", patch_px=16, width=192) == xcit
    assert size("xcit", patch_px=16, width=192) == xcit


def test_a_token_of_the_convolutions_sees_7_by_7_pixels():
    square = squares(15).requires_grad_()
    stem_of("convolutions", 1)(square)[0, 7 * 15 + 7].sum().backward()
    rows, columns = square.grad[0].abs().sum(-1).nonzero().unbind(1)
    assert len(rows) == 49
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 4, 10)


def test_the_convolutions_are_one_linear_map():
    made, first, second = stem_of("convolutions", 2), squares(8), squares(8)
    zero = made(torch.zeros_like(first))
    together = made(2 * first - second) - zero
    torch.testing.assert_close(together, 2 * (made(first) - zero) - (made(second) - zero))


@pytest.mark.parametrize(("stem", "patch_px"), EVERY)
@torch.no_grad()
def test_no_square_changes_another_in_evaluation(stem, patch_px):
    made, pair = stem_of(stem, patch_px), squares(2 * patch_px)
    torch.testing.assert_close(made(pair)[1:], made(pair[1:]), rtol=1e-12, atol=1e-12)


def test_only_a_batch_norm_lets_squares_change_each_other_in_training():
    pair = squares(8)
    for stem, same in (("xcit", True), ("xcit@norm=batch", False)):
        made = stem_of(stem, 4).train()
        assert torch.allclose(made(pair)[1:], made(pair[1:])) == same


def test_the_batch_norm_is_torchs_without_its_counter():
    ours, theirs = BatchNorm(5).double(), torch.nn.BatchNorm2d(5).double()
    for _ in range(3):
        maps = torch.randn(4, 5, 3, 2, dtype=torch.float64)
        torch.testing.assert_close(ours(maps), theirs(maps))
    torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert all(value.is_floating_point() for value in ours.state_dict().values())


def test_only_weights_of_convolutions_decay():
    made = build_stem("xcit@norm=batch", patch_px=4, bands=BANDS, width=WIDTH)
    decaying, _ = parameter_groups(made, weight_decay=0.1)
    assert [each.dim() for each in decaying["params"]] == [4, 4]


@pytest.mark.parametrize(
    ("stem", "patch_px", "width", "says"),
    [
        ("convolutions", 16, 16, "makes patches of 1, 2, 4, 8 px, not 16"),
        ("xcit", 1, 16, "makes patches of 2, 4, 8, 16 px, not 1"),
        ("xcit", 16, 12, "width 12 is no multiple of 8"),
        ("convolutions", 1, 18, "width 18 is no multiple of 4"),
        ("conv", 4, 16, "stem is 'conv'.*choose one of linear, convolutions, xcit"),
        ("xcit@norm=layer", 4, 16, "norm is 'layer': one of 'group', 'batch' is wanted"),
        ("convolutions@norm=batch", 4, 16, "stem is 'convolutions@norm=batch': no setting 'norm'"),
    ],
)
def test_a_stem_that_cannot_be_is_refused_with_what_can(stem, patch_px, width, says):
    with pytest.raises(ValueError, match=says):
        build_stem(stem, patch_px=patch_px, bands=BANDS, width=width)


def test_a_setting_of_a_stem_is_refused_under_its_own_name():
    with pytest.raises(ValueError, match=r"model\.stem is 'linaer': did you mean 'linear'"):
        read_stem("linaer", setting="model.stem")
