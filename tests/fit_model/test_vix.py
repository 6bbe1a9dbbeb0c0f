"""ViX with every operator, stem, position and pooling: what it sees, what it does not, and that it
learns."""

import json
from dataclasses import replace

import pytest
import torch

from fit_model import weights
from fit_model.attention.mixers import MIXERS
from fit_model.bounded.config import BoundedConfig
from fit_model.flops import forward_macs, num_parameters
from fit_model.groups import GroupBatch, collate
from fit_model.heads import ClassifyConfig, RegressConfig
from fit_model.model import ModelConfig
from fit_model.models import build, config_from_dict, config_to_dict
from fit_model.objective import Objective
from fit_model.vix import VixConfig
from tests.fit_model.examples import BANDS, SIDE_PX, image, randomize
from tests.fit_model.generators import generator_config, pixels, seeds_of
from tests.fit_model.test_operators_in_fit import SHORT

ROWS, COLUMNS = 2, 3
OPERATORS = [
    "softmax",
    *(SHORT.get(name, name).replace("axes=line", "axes=grid") for name in MIXERS),
]
SMALL = VixConfig(
    patch_px=4, width=16, depth=2, heads=2, mlp_ratio=2, grid_rows=ROWS, grid_columns=COLUMNS
)
XCIT = {
    "operator": "xca",
    "stem": "xcit@norm=batch",
    "position": "fourier",
    "pooling": "class_attention",
    "local_patch_interaction": "convolutions",
    "layer_scale": 0.5,
}
KINDS = {
    **{name.partition("@")[0]: {"operator": name, "pooling": "mean"} for name in OPERATORS},
    "deit": {},
    "hybrid": {"stem": "convolutions", "rotary": "rotary_axial", "position": "none"},
    "sin_cos": {"position": "sin_cos_2d", "operator": ("softmax", "tssa"), "dropout": 0.1},
    "xcit": XCIT,
    "tost": XCIT | {"operator": "tssa", "local_patch_interaction": "none"},
}


def config_of(head=None, **changes) -> ModelConfig:
    return ModelConfig(
        face=replace(SMALL, **changes),
        input=pixels(),
        head=head or ClassifyConfig(classes=("day", "night", "dusk")),
    )


def model_of(**changes) -> torch.nn.Module:
    """A model whose every weight is drawn at random, and with it what batch norms expect."""
    model = randomize(build(config_of(**changes))).double().eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2.0)
    return model


def whole(seed: int = 0, **changes) -> GroupBatch:
    return image(ROWS, COLUMNS, seed=seed, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_has_the_cost_that_was_foretold_and_gradients_everywhere(kind):
    config = config_of(**KINDS[kind])
    model = randomize(build(config))
    assert sum(each.numel() for each in model.parameters()) == num_parameters(config)
    assert forward_macs(config, [6, 4]) == 2 * forward_macs(config, [6])
    batch = collate([whole(1), whole(2, stored=[0, 2, 3]), whole(3, height_px=9, width_px=21)])
    model.losses(batch, torch.tensor([0, 1, 2]), seeds=seeds_of(3)).sum().backward()
    assert all(each.grad.isfinite().all() for each in model.parameters())
    assert all(each.grad.abs().sum() > 0 for each in model.parameters() if each.dim() > 1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_batch_mate_changes_an_image(kind):
    model = model_of(**KINDS[kind])
    images = [whole(1), whole(2, stored=[1, 5]), whole(3, height_px=9, width_px=21)]
    together = model(collate(images))
    for number, alone in enumerate(images):
        torch.testing.assert_close(model(alone)[0], together[number], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_is_missing_is_unseen_and_changes_nothing(kind):
    model = model_of(**KINDS[kind])
    ragged = whole(1, height_px=9, width_px=21)
    garbage = ragged.pixels.clone()
    side = torch.arange(SIDE_PX)
    outside = (side >= ragged.valid_height_px[:, None])[:, :, None] | (
        side >= ragged.valid_width_px[:, None]
    )[:, None, :]
    garbage[outside] = 255
    assert outside.any()
    torch.testing.assert_close(model(replace(ragged, pixels=garbage)), model(ragged))
    seen = model.seen(ragged).view(ROWS * 2, COLUMNS * 2)
    assert seen.tolist() == [[True] * 6] * 3 + [[False] * 6]
    gaps = model.seen(whole(1, stored=[0, 5])).view(ROWS * 2, COLUMNS * 2)
    assert gaps.nonzero().tolist() == [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
        [2, 4],
        [2, 5],
        [3, 4],
        [3, 5],
    ]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"fnet"}))
@torch.no_grad()
def test_tokens_of_missing_groups_are_read_by_nobody(kind):
    model = model_of(**KINDS[kind])
    gaps = whole(1, stored=[0, 1, 5])
    before = model(gaps)

    def disturb(module, inputs, tokens):
        unseen = ~model.seen(gaps)
        prefix = tokens.shape[1] - unseen.shape[1]
        return tokens.index_put(
            (torch.zeros(1).long(), unseen[0].nonzero()[:, 0] + prefix), tokens.new_tensor(7.0)
        )

    model.vix.position.register_forward_hook(disturb)
    torch.testing.assert_close(model(gaps), before, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_groups_come_together_as_the_picture_they_were_cut_from():
    model = model_of()
    batch = whole(1)
    picture = torch.zeros(ROWS * SIDE_PX, COLUMNS * SIDE_PX, BANDS)
    for pixels_of, row, column in zip(batch.pixels, batch.row, batch.column, strict=True):
        picture[row * SIDE_PX :, column * SIDE_PX :][:SIDE_PX, :SIDE_PX] = pixels_of
    assert torch.equal(model.whole(batch.pixels.float(), batch)[0], picture)


def same_shuffled(model: torch.nn.Module) -> bool:
    """Whether the answer stays when the patches of the picture change places."""
    images = torch.randn(2, ROWS * SIDE_PX, COLUMNS * SIDE_PX, BANDS, dtype=torch.float64)
    patches = images.unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).transpose(2, 3).flatten(1, 2)
    order = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(1))
    grid = patches[:, order].unflatten(1, (ROWS * 2, COLUMNS * 2))
    moved = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return torch.allclose(model.vix(images), model.vix(moved), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", ["softmax", "tssa", "xca", "aft_simple", "performer"])
@torch.no_grad()
def test_without_positions_patches_have_no_order(operator):
    for pooling in ("class_token", "mean", "class_attention"):
        model = model_of(operator=operator, position="none", pooling=pooling)
        assert same_shuffled(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"operator": SHORT["linformer"]},
        {"operator": SHORT["nystromformer"]},
        {"operator": SHORT["aft_full"]},
        {"operator": SHORT["aft_local"]},
        {"operator": "aft_conv@kernel=3"},
        {"operator": "mlp_mixer"},
        {"operator": "fnet"},
        {"rotary": "rotary_1d"},
        {"rotary": "rotary_axial"},
        {"operator": "xca", "local_patch_interaction": "convolutions"},
        {"position": "learned"},
        {"position": "sin_cos_2d"},
        {"position": "fourier"},
        {"stem": "convolutions"},
    ],
)
@torch.no_grad()
def test_what_knows_places_gives_patches_an_order(changes):
    model = model_of(**{"position": "none", "pooling": "mean"} | changes)
    assert not same_shuffled(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_survives_json_and_saving(kind, tmp_path):
    config = config_of(**KINDS[kind])
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    model = model_of(**KINDS[kind]).float()
    weights.save(model, tmp_path)
    again = weights.load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        torch.testing.assert_close(again(whole()), model(whole()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"width": 10**9}, {"width": 10**8, "depth": 9999}, {"grid_rows": 10**12}]
)
def test_a_configuration_that_no_machine_can_hold_is_refused(changes, tmp_path):
    weights.save(build(config_of()), tmp_path)
    declared = json.loads((tmp_path / weights.CONFIG).read_text())
    declared["model"]["face"].update(changes)
    (tmp_path / weights.CONFIG).write_text(json.dumps(declared))
    with pytest.raises(ValueError, match=f"{tmp_path}/{weights.WEIGHTS}.* declare"):
        weights.load(tmp_path)


@pytest.mark.parametrize("kind", ["deit", "tost", "mlp_mixer"])
def test_it_learns(kind):
    images = [whole(seed) for seed in range(8)]
    for number, each in enumerate(images):
        each.pixels[:, ::2] //= 1 + number % 2  # stripes in every other image
    batch, targets = collate(images), torch.arange(8) % 2
    head = ClassifyConfig(classes=("plain", "striped"))
    model = build(replace(config_of(**KINDS[kind]), head=head))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model.losses(batch, targets, seeds=seeds_of(8)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"operator": ("softmax", "tssa", "xca")}, "names 3 operators for 2 layers"),
        ({"operator": "sofmax"}, "operator is 'sofmax': did you mean 'softmax'"),
        ({"rotary": "rotary_1d", "operator": "xca"}, "operator 'xca' has no queries and keys"),
        ({"rotary": "rotary"}, "rotary is 'rotary': did you mean"),
        ({"stem": "conv"}, "stem is 'conv'"),
        ({"local_patch_interaction": "convolutions"}, "set pooling to 'class_attention'"),
        ({"heads": 3}, "width 16 is no multiple of its 3 heads"),
        ({"grid_rows": 0}, "grid_rows is 0"),
        ({"depth": 10**10}, "depth is 10000000000: at most 9999 layers are made"),
        ({"layer_scale": float("nan")}, "layer_scale holds nan"),
        ({"position_std": -1.0}, "position_std is -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_can(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **changes)


def test_operators_may_be_one_a_layer_in_json_too():
    values = config_to_dict(config_of(operator=("xca", "tssa")))
    assert values["face"]["operator"] == ["xca", "tssa"]
    assert config_from_dict(values).face.operators == ("xca", "tssa")
    values["face"]["operator"] = 3
    with pytest.raises(ValueError, match=r"face\.operator is 3: text or a list is wanted"):
        config_from_dict(values)


def test_it_refuses_other_grids_other_targets_and_another_pool():
    with pytest.raises(ValueError, match="takes images of 2 x 3 groups, not of 1 x 1, 4 x 2: set"):
        build(config_of())(collate([image(4, 2), image(1, 1)]))
    with pytest.raises(ValueError, match="'vix' pools class_token as its own setting pooling says"):
        config_of(head=ClassifyConfig(classes=("a", "b"), pool="tokens"))
    with pytest.raises(ValueError, match="a model of kind 'vix' cannot generate"):
        replace(generator_config("diffusion"), face=SMALL)


def test_a_batch_norm_with_nothing_to_compare_is_refused():
    one = build(config_of(**XCIT | {"grid_rows": 1, "grid_columns": 1, "patch_px": 8}))
    with pytest.raises(ValueError, match=r"the only patch of the only image.*norm=group"):
        one(image(1, 1))
    assert one.eval()(image(1, 1)).isfinite().all()


def test_it_predicts_numbers_too():
    head = RegressConfig(targets=("a", "b"), target_mean=(1.0, 2.0), target_std=(0.5, 2.0))
    model = build(replace(config_of(), head=head))
    assert model.measures(whole(), None, seeds=seeds_of(1)).shape == (1, 2)


def test_an_engine_may_ask_for_the_losses_of_whole_images_and_of_nothing_else():
    config = config_of()
    model = randomize(build(config))
    asked = (image(ROWS, COLUMNS), torch.tensor([1]), seeds_of(1))
    wanted = model.losses(asked[0], asked[1], seeds=asked[2])
    torch.testing.assert_close(Objective(model)(*asked), wanted, rtol=0, atol=0)
    with pytest.raises(ValueError, match="sees its images whole: leave bounded"):
        Objective(model, bounded=BoundedConfig())(*asked)
