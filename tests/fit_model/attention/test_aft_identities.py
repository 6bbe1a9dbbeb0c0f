"""What the forms of AFT have in common, what they must not have, and what they refuse."""

import math

import pytest
import torch

from fit_model.attention.aft import AftFull, AftFullConfig, AftSimple, AftSimpleConfig
from fit_model.attention.aft_conv import AftConv, AftConvConfig, shifted_expm1
from fit_model.attention.aft_local import AftLocal, AftLocalConfig
from fit_model.attention.place import Place
from fit_model.attention.prefix_means import prefix_means, suffix_means
from tests.fit_model.attention.aft_loops import FORMS, WIDTH, conv, form, full, local, simple
from tests.fit_model.attention.mixing import everywhere_random, sequences

CAUSES = ["none", "tokens"]


def with_weights_of(mixer, other):
    """`mixer` with the projections of `other`."""
    own = {name: p for name, p in other.state_dict().items() if not name.startswith("position")}
    mixer.load_state_dict(own, strict=False)
    return mixer


def same(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("causal", CAUSES)
def test_simple_is_full_with_a_bias_of_zeros_or_of_any_constant_a_row(causal):
    plain = everywhere_random(simple(63, causal=causal))
    biased = with_weights_of(full(63, causal=causal, rank=None).double(), plain)
    x = sequences(63, WIDTH)
    wanted = plain(x)
    for constant in (torch.zeros(65, 1), torch.full((65, 1), 7.0), 50 * torch.randn(65, 1)):
        torch.nn.init.zeros_(biased.position_bias.w).data.add_(constant)
        same(biased(x), wanted)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "local 4"])
def test_a_constant_added_to_a_channel_of_the_keys_changes_nothing(name):
    mixer = everywhere_random(form(name, 63))
    x = sequences(63, WIDTH)
    wanted = mixer(x)
    mixer.key.bias.data.add_(torch.randn(mixer.key.bias.shape, dtype=torch.float64) * 9)
    same(mixer(x), wanted)


@pytest.mark.parametrize("causal", CAUSES)
def test_local_is_simple_without_a_window_and_full_with_one_as_long_as_the_sequence(causal):
    wide = everywhere_random(full(63, causal=causal, rank=3))
    x = sequences(63, WIDTH)
    for window in (63, 64, 1000):
        narrow = local(63, causal=causal, rank=3, window=window).double()
        narrow.load_state_dict(wide.state_dict())
        same(narrow(x), wide(x))
    narrow = local(63, causal=causal, rank=3, window=0).double()
    narrow.load_state_dict(wide.state_dict())
    same(narrow(x), with_weights_of(simple(63, causal=causal).double(), wide)(x))


def with_wide_keys(mixer):
    """AFT-simple with the keys of every head for each of its channels."""
    wide = simple(63).double()
    state = mixer.state_dict()
    state = {name: p for name, p in state.items() if not name.startswith("position")}
    for name in ("key.weight", "key.bias"):
        state[name] = state[name].repeat_interleave(WIDTH // mixer.heads, 0)
    wide.load_state_dict(state)
    return wide


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_a_filter_without_gamma_and_beta_is_simple_with_keys_of_heads(heads):
    mixer = everywhere_random(conv(63, kernel=5, heads=heads))
    torch.nn.init.zeros_(mixer.position_bias.gamma)
    torch.nn.init.zeros_(mixer.position_bias.beta)
    x = sequences(63, WIDTH)
    same(mixer(x), with_wide_keys(mixer)(x))


def test_a_filter_is_a_table_of_biases_that_repeats_along_the_grid():
    mixer = everywhere_random(conv(63, kernel=5))
    table = full(63, rank=None).double()
    with_weights_of(table, with_wide_keys(mixer))
    filters = mixer.position_bias(torch.float64)[0].detach()
    bias = torch.zeros(65, 65, dtype=torch.float64)
    for t in range(63):
        for i in range(63):
            down, right = i // 9 - t // 9, i % 9 - t % 9
            if max(abs(down), abs(right)) <= 2:
                bias[t, i] = filters[2 + down, 2 + right]
    table.position_bias.w.data.copy_(bias)
    x = sequences(63, WIDTH)
    same(mixer(x), table(x))


def test_a_line_is_a_grid_of_one_row():
    line = everywhere_random(conv(5, kernel=3, axes="line", heads=2))
    grid = conv(5, kernel=3, heads=2).double()
    grid.load_state_dict(
        line.state_dict() | {"position_bias.raw": torch.randn(2, 3, 3, dtype=torch.float64)}
    )
    with torch.no_grad():
        rows = line.position_bias(torch.float64)
        raw = grid.position_bias.raw
        raw[:, 1:2] = rows
        raw[:, 0], raw[:, 2] = rows[:, 0] - 3.0, rows[:, 0] + 2.0
        std, mean = torch.std_mean(raw.flatten(1), 1, correction=0)
        grid.position_bias.gamma.copy_(std)
        grid.position_bias.beta.copy_(mean)
    same(grid(sequences(5, WIDTH)), line(sequences(5, WIDTH)))


@pytest.mark.parametrize("causal", CAUSES)
def test_the_worked_example_of_two_tokens(causal):
    mixer = AftFull(
        AftFullConfig(rank=None), width=3, heads=1, place=Place(num_tokens=2, causal=causal)
    ).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
        mixer.key.weight[0, 0] = mixer.value.weight[0, 1] = mixer.out.weight[0, 0] = 1.0
        mixer.position_bias.w[1, 0] = math.log(2)
    x = torch.tensor([[[0.0, 1.0, 0.0], [math.log(3), 5.0, 0.0]]], dtype=torch.float64)
    wanted = [2.0, 1.7] if causal == "none" else [0.5, 1.7]
    same(mixer(x)[0, :, 0], torch.tensor(wanted, dtype=torch.float64))


def test_causal_full_with_biases_that_fade_is_the_recurrence_of_rwkv():
    decay, bonus, length = 0.3, 0.8, 40
    mixer = everywhere_random(full(length, causal="tokens", rank=None))
    place = torch.arange(length + 2, dtype=torch.float64)
    fading = -(place[:, None] - 1 - place) * decay
    bias = torch.where(place[:, None] == place, bonus, fading).tril()
    mixer.position_bias.w.data.copy_(bias)
    x = sequences(length, WIDTH)
    key, value, gate = mixer.key(x), mixer.value(x), mixer.query(x).sigmoid()
    above = below = torch.zeros_like(key[:, 0])
    rows = []
    for t in range(length):
        now = (bonus + key[:, t]).exp()
        rows.append((above + now * value[:, t]) / (below + now))
        above = math.exp(-decay) * above + key[:, t].exp() * value[:, t]
        below = math.exp(-decay) * below + key[:, t].exp()
    same(mixer(x), mixer.out(gate * torch.stack(rows, 1)))


@pytest.mark.parametrize("name", [name for name in FORMS if "causal" not in name])
def test_only_forms_without_places_permute_with_the_tokens(name):
    mixer = everywhere_random(form(name, 63))
    x = sequences(63, WIDTH)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(0))
    apart = (mixer(x[:, order]) - mixer(x)[:, order]).abs().max()
    assert apart < 1e-12 if name in ("simple", "local 0") else apart > 1e-2


@pytest.mark.parametrize("means", [prefix_means, suffix_means])
@pytest.mark.parametrize("num_tokens", [1, 5, 63])
def test_means_of_every_part_are_softmaxes_over_it(means, num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    shape = (2, num_tokens, 3)
    logits = 400 * torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    top, weight, mean = means(logits, values)
    for t in range(num_tokens):
        part = slice(None, t + 1) if means is prefix_means else slice(t, None)
        same(mean[:, t], (logits[:, part].softmax(1) * values[:, part]).sum(1))
        same(top[:, t] + weight[:, t].log(), logits[:, part].logsumexp(1))


def test_gradients_of_prefix_means_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits, values = (
        torch.randn(1, 6, 2, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )

    def sums(logits, values):
        top, weight, mean = prefix_means(logits, values)
        return weight * top.exp(), mean

    # weight * exp(top) does not depend on the top, but its gradient is told through the weight.
    assert torch.autograd.gradcheck(sums, (logits, values))


def test_the_filter_of_a_convolution_keeps_its_digits_and_its_gradient_at_zero():
    bias = torch.tensor([[[0.0, 1e-6, -1e-6], [300.0, -300.0, 1.0]]]).requires_grad_()
    found = shifted_expm1(bias, torch.tensor([0.0]).clamp(min=0))
    torch.testing.assert_close(found[0, 0], bias[0, 0].expm1(), atol=0, rtol=1e-6)
    shifted = shifted_expm1(bias, torch.tensor([300.0]))
    torch.testing.assert_close(shifted[0, 1, 0], torch.tensor(1.0))
    assert shifted.isfinite().all()
    gradient = torch.autograd.grad(found[0, 0].sum(), bias)[0]
    torch.testing.assert_close(gradient[0, 0], torch.ones(3))


@pytest.mark.parametrize(
    ("mixer", "numbers"),
    [
        (lambda place: AftLocal(AftLocalConfig(window=256, rank=None, qkv_bias=False),
                                width=256, heads=1, place=place), 3072**2 + 3 * 256**2),
        (lambda place: AftLocal(AftLocalConfig(window=256, rank=64, qkv_bias=False),
                                width=256, heads=1, place=place), 2 * 3072 * 64 + 3 * 256**2),
        (lambda place: AftSimple(AftSimpleConfig(qkv_bias=False),
                                 width=256, heads=1, place=place), 3 * 256**2),
    ],
)  # fmt: skip
def test_layers_are_as_large_as_those_of_the_paper(mixer, numbers):
    with torch.device("meta"):
        built = mixer(Place(num_tokens=3072))
    sizes = {name: p.numel() for name, p in built.named_parameters() if name[:3] != "out"}
    assert sum(sizes.values()) == numbers


def test_a_filter_adds_its_side_squared_and_two_numbers_a_head():
    mixer = AftConv(AftConvConfig(heads=16), width=384, heads=6, place=Place(grid=(14, 14)))
    assert sum(p.numel() for p in mixer.position_bias.parameters()) == 16 * (11**2 + 2)
    assert mixer.key.weight.shape == (16, 384)


PAIRS = torch.ones(3, 1, 63, 63, dtype=torch.bool)


@pytest.mark.parametrize("name", FORMS)
def test_masks_of_single_pairs_are_refused(name):
    with pytest.raises(ValueError, match=r"aft_(simple|full|local|conv) .*softmax"):
        form(name, 63)(torch.randn(3, 63, WIDTH), PAIRS)


@pytest.mark.parametrize(
    ("build", "remedy"),
    [
        (lambda: full(8)(torch.randn(1, 11, WIDTH)), "aft_full has .* 10 tokens and is given 11"),
        (lambda: local(8)(torch.randn(1, 11, WIDTH)), "aft_local has .* build it for longer"),
        (lambda: conv(63, kernel=3)(torch.randn(1, 62, WIDTH)), "7 x 9 .* given 62"),
        (lambda: conv(63, kernel=4), "kernel is 4: it must be odd"),
        (lambda: conv(63, kernel=1), "at least 3"),
        (lambda: conv(63, heads=4), "width 6 is no multiple of the 4 heads"),
        (lambda: local(8, window=-1), "window is -1"),
        (lambda: full(8, rank=0), "rank is 0"),
        (lambda: full(8, initial_std=-1.0), "initial_std is -1.0"),
        (lambda: full(8, initial_std=math.nan), "finite"),
        (lambda: simple(8, hidden=0), "hidden is 0"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(build, remedy):
    with pytest.raises(ValueError, match=remedy):
        build()


@pytest.mark.parametrize(
    ("mixer", "config", "place", "remedy"),
    [
        (AftFull, AftFullConfig(), Place(), "aft_full has weights for every position"),
        (AftLocal, AftLocalConfig(), Place(), "aft_local has weights for every position"),
        (AftConv, AftConvConfig(), Place(num_tokens=9), "aft_conv works on a grid"),
        (AftConv, AftConvConfig(), Place(grid=(3, 3), causal="tokens"), "aft_conv .*no causal"),
        (AftConv, AftConvConfig(), Place(grid=(3, 3), prefix=1), "aft_conv .*average"),
    ],
)
def test_places_that_a_form_cannot_take_are_refused(mixer, config, place, remedy):
    with pytest.raises(ValueError, match=remedy):
        mixer(config, width=WIDTH, heads=1, place=place)
