"""Rotary codes turn by the angles they say, and scores depend on differences of positions."""

import math

import pytest
import torch

from fit_model import parity
from fit_model.attention.operators import OPERATORS
from fit_model.attention.place import Place
from fit_model.attention.rotary import (
    ROTARIES,
    Rotary1d,
    Rotary1dConfig,
    RotaryAxial,
    RotaryAxialConfig,
    RotaryMixed,
    RotaryMixedConfig,
    RotatedOperator,
    build_rotary,
    rotate,
)
from tests.fit_model.attention.mixing import same_forward_and_backward

CONFIGS = {
    "rotary_1d": Rotary1dConfig(),
    "rotary_axial": RotaryAxialConfig(),
    "rotary_mixed": RotaryMixedConfig(),
}
GRID = Place(grid=(3, 4))


def heads_of(tokens, *, batch=2, heads=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, tokens, width, generator=generator, dtype=torch.float64)


def rotary(kind, *, place=GRID, width=24, heads=3):
    torch.manual_seed(3)
    return build_rotary(CONFIGS[kind], width=width, heads=heads, place=place).double()


def angle(kind, code, h, token, i, *, place, width):
    """The angle of one pair of channels at one token, from the formula."""
    columns = place.grid[1]
    if kind == "rotary_1d":
        return max(token - max(place.prefix - 1, 0), 0) * 10000.0 ** (-2 * i / width)
    row, column = divmod(max(token - place.prefix, 0), columns)
    if kind == "rotary_axial":
        position, j = (column, i) if i < width // 4 else (row, i - width // 4)
        return position * 100.0 ** (-4 * j / width)
    return column * code.frequencies[0, h, i] + row * code.frequencies[1, h, i]


def loop(kind, code, x, *, place):
    """Every pair of channels turned on its own."""
    numbers = []
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for t in range(x.shape[2]):
                for i in range(x.shape[3] // 2):
                    where = {"place": place, "width": x.shape[3]}
                    turn = torch.as_tensor(angle(kind, code, h, t, i, **where), dtype=torch.float64)
                    first, second = x[b, h, t, 2 * i], x[b, h, t, 2 * i + 1]
                    numbers.append(first * turn.cos() - second * turn.sin())
                    numbers.append(first * turn.sin() + second * turn.cos())
    return torch.stack(numbers).view_as(x)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_code_is_a_loop_forward_and_backward(kind, prefix):
    place = Place(grid=(3, 4), prefix=prefix)
    code = rotary(kind, place=place)
    query, key = (heads_of(12 + prefix, batch=1, seed=n).requires_grad_() for n in (0, 1))
    wanted = [loop(kind, code, each, place=place) for each in (query, key)]
    leaves = [query, key, *code.parameters()]
    same_forward_and_backward(list(code(query, key)), wanted, leaves)


@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_before_the_grid_keep_their_place_and_all_their_length(kind):
    code = rotary(kind, place=Place(grid=(3, 4), prefix=2))
    query, key = heads_of(14), heads_of(14, seed=1)
    turned = code(query, key)
    for before, after in zip((query, key), turned, strict=True):
        assert torch.equal(after[:, :, :2], before[:, :, :2])
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), atol=1e-12, rtol=0)
        assert (after[:, :, 6:] - before[:, :, 6:]).abs().max() > 0.1


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_score_depends_on_the_difference_of_places_alone(kind):
    rows, columns = (1, 20) if kind == "rotary_1d" else (5, 6)
    code = rotary(kind, place=Place(grid=(rows, columns)))
    same = heads_of(1).expand(-1, -1, rows * columns, -1)
    query, key = code(same, heads_of(1, seed=1).expand_as(same))
    scores = query @ key.transpose(-2, -1)
    scores = scores.unflatten(-1, (rows, columns)).unflatten(2, (rows, columns))
    by, along = min(rows - 1, 2), 3
    shifted = scores[:, :, by:, along:, by:, along:]
    kept = scores[:, :, : rows - by, : columns - along, : rows - by, : columns - along]
    torch.testing.assert_close(shifted, kept, atol=1e-12, rtol=0)
    assert (scores[..., 0, 0] - scores[..., 0, 1]).abs().max() > 0.01


def test_the_difference_counts_at_the_end_of_a_long_sequence_too():
    code = build_rotary(Rotary1dConfig(), width=8, heads=1, place=Place())
    same = heads_of(1, batch=1, heads=1).float().expand(-1, -1, 70_000, -1)
    query, key = code(same, same)
    scores = (query[:, :, 1:] * key[:, :, :-1]).sum(-1)
    assert scores.max() - scores.min() < 1e-5


@pytest.mark.parametrize("kind", CONFIGS)
def test_fewer_queries_are_the_last_of_the_positions(kind):
    code, query, key = rotary(kind), heads_of(12), heads_of(12, seed=1)
    whole, _ = code(query, key)
    last, keys = code(query[:, :, 10:], key)
    assert torch.equal(last, whole[:, :, 10:])
    assert torch.equal(keys, code(query, key)[1])


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_head_of_keys_is_turned_for_every_head(kind):
    code, query, key = rotary(kind), heads_of(12), heads_of(12, heads=1)
    _, turned = code(query, key)
    _, wanted = code(query, key.expand(-1, 3, -1, -1))
    torch.testing.assert_close(turned.expand_as(wanted), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_operator_with_a_code_turns_queries_and_keys_alone(kind):
    code, query, key, value = rotary(kind), *(heads_of(12, seed=n) for n in range(3))
    may_attend = (torch.arange(12) < 7)[None, None, None]
    found = RotatedOperator(OPERATORS["softmax"], code)(query, key, value, may_attend=may_attend)
    wanted = OPERATORS["softmax"](*code(query, key), value, may_attend=may_attend)
    assert torch.equal(found, wanted)
    assert (
        found - OPERATORS["softmax"](query, key, value, may_attend=may_attend)
    ).abs().max() > 1e-3


def test_learned_frequencies_start_as_directions_of_falling_length():
    code = RotaryMixed(RotaryMixedConfig(), width=64, heads=4, place=GRID)
    lengths = code.frequencies.norm(dim=0).double()
    wanted = 10.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    torch.testing.assert_close(lengths, wanted.repeat(4, 2), atol=1e-5, rtol=0)
    first, second = code.frequencies.unflatten(-1, (2, 4)).unbind(2)
    assert (first * second).sum(0).abs().max() < 1e-5
    direction = torch.atan2(first[1], first[0])
    assert (direction - direction[:, :1]).abs().max() < 1e-5
    assert direction[:, 0].unique().numel() == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_code_gives_the_dtype_it_gets(kind, dtype):
    query, key = heads_of(12), heads_of(12, seed=1)
    code = rotary(kind)
    within = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    found = code.to(torch.float32)(query.to(dtype), key.to(dtype))
    for ours, theirs in zip(found, code.double()(query, key), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, atol=within, rtol=within)


def test_the_registry_names_every_code():
    assert list(ROTARIES) == [config.kind for config in CONFIGS.values()]


@pytest.mark.parametrize(
    "name", ["rope_1d", "rope_axial_2d", "rope_axial_2d_cls", "rope_mixed_2d_cls"]
)
def test_golden_codes_are_met(shared, name):
    assert parity.main([str(shared / f"golden/ops/{name}.npz"), "--tolerance", "1e-13"]) == 0


@pytest.mark.parametrize("name", ["softmax_attention", "softmax_attention_causal"])
def test_golden_attention_without_a_code_is_met(shared, name):
    assert parity.main([str(shared / f"golden/ops/{name}.npz"), "--tolerance", "1e-13"]) == 0


@pytest.mark.parametrize("kind", ["rotary_axial", "rotary_mixed"])
def test_codes_of_a_grid_want_one_and_no_more_tokens_than_it_has(kind):
    with pytest.raises(ValueError, match=f"{kind} works on a grid"):
        rotary(kind, place=Place(num_tokens=12))
    with pytest.raises(ValueError, match="13 tokens do not fit"):
        rotary(kind)(heads_of(13), heads_of(13))


@pytest.mark.parametrize(
    ("kind", "heads"), [("rotary_1d", 8), ("rotary_axial", 4), ("rotary_mixed", 5)]
)
def test_heads_that_fall_into_no_pairs_are_refused(kind, heads):
    with pytest.raises(ValueError, match=f"{kind} turns heads"):
        rotary(kind, heads=heads)


@pytest.mark.parametrize("form", [Rotary1dConfig, RotaryAxialConfig, RotaryMixedConfig])
@pytest.mark.parametrize("theta", [1.0, -3.0, math.nan])
def test_a_base_without_falling_frequencies_is_refused(form, theta):
    with pytest.raises(ValueError, match="theta is"):
        form(theta=theta)


def test_angle_0_turns_nothing():
    x = heads_of(4)
    assert torch.equal(rotate(x, torch.zeros(1, 4, 4, dtype=torch.float64)), x)
    assert isinstance(rotary("rotary_1d"), Rotary1d)
    assert isinstance(rotary("rotary_axial"), RotaryAxial)
