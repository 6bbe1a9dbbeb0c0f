"""TSSA is its formula, forward and backward, and the descent direction it was derived as."""

import functools

import pytest
import torch

from fit_model import parity
from fit_model.attention.place import Place
from fit_model.attention.tssa import Tssa, TssaConfig
from fit_model.attention.tssa_causal import CausalTssa, tssa_mixer
from tests.fit_model.attention.mixing import (
    MASKS,
    all_finite,
    drift_in_bfloat16,
    everywhere_random,
    mask,
    same_forward_and_backward,
    seen_tokens,
    sequences,
)

ANYWHERE = Place()
IN_ORDER = Place(num_tokens=70, causal="tokens")


def mixer(heads, *, width=6, place=ANYWHERE, **settings):
    form = Tssa if place.causal == "none" else CausalTssa
    return everywhere_random(
        form(TssaConfig(**settings), width=width, heads=heads, place=place), seed=heads
    )


def core(model, values):
    """The operator between its two projections, for values (b, n, c)."""
    width = values.shape[-1]
    with torch.no_grad():
        for linear in (model.qkv, model.out):
            linear.weight.copy_(torch.eye(width))
            linear.bias.zero_()
    return model(values)


def loop(model, x, may_attend):
    """Both forms a number at a time; the causal one restarts its sums at every token."""
    causal = getattr(model, "score_bias", None) is not None
    heads, width = model.heads, x.shape[-1]
    d = width // heads
    values = x @ model.qkv.weight.T + model.qkv.bias
    rows = []
    for b in range(x.shape[0]):
        seen, member = seen_tokens(may_attend, b, x.shape[1]), {}

        @functools.cache
        def before(t, seen=tuple(seen)):
            return tuple(s for s in seen if s <= t or not causal)

        @functools.cache
        def energy(c, tokens, b=b):
            return sum(values[b, s, c] ** 2 for s in tokens)

        @functools.cache
        def moment(c, tokens, b=b, member=member):
            total = sum(member[c // d, s] for s in tokens) + 1e-8
            return sum(member[c // d, s] * values[b, s, c] ** 2 for s in tokens) / total

        for t in seen:
            scores = []
            for h in range(heads):
                score = 0.0
                for c in range(h * d, (h + 1) * d):
                    score = score + values[b, t, c] ** 2 / energy(c, before(t))
                    if causal:
                        score = score + model.score_bias[h, t, 0]
                scores.append(torch.exp(model.temperature[h, 0] * score))
            for h in range(heads):
                member[h, t] = scores[h] / sum(scores)
        for t in range(x.shape[1]):
            row = [torch.zeros((), dtype=torch.float64)] * width
            for c in range(width) if t in seen else ():
                row[c] = -values[b, t, c] * member[c // d, t] / (1 + moment(c, before(t)))
            rows.append(torch.stack(row) @ model.out.weight.T + model.out.bias)
    return torch.stack(rows).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("place", [ANYWHERE, IN_ORDER], ids=["any order", "causal"])
@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize(("num_tokens", "heads"), [(1, 1), (1, 3), (5, 1), (5, 2), (5, 3)])
def test_tssa_is_a_loop_forward_and_backward(num_tokens, heads, seen, place):
    x, model = sequences(num_tokens, 6).requires_grad_(), mixer(heads, place=place)
    may_attend = mask(seen, num_tokens)
    same_forward_and_backward(
        [model(x, may_attend)], [loop(model, x, may_attend)], [x, *model.parameters()]
    )


@pytest.mark.parametrize("place", [ANYWHERE, IN_ORDER], ids=["any order", "causal"])
def test_tssa_is_a_loop_on_63_tokens(place):
    x, model = sequences(63, 4, batch=1).requires_grad_(), mixer(2, width=4, place=place)
    same_forward_and_backward([model(x)], [loop(model, x, None)], [x, *model.parameters()])


def test_the_worked_example_comes_out():
    model = Tssa(TssaConfig(), width=4, heads=2, place=ANYWHERE).double()
    values = torch.tensor([[[1.0, 0, 1, 1], [0, 2, 2, 0]]], dtype=torch.float64)
    wanted = [[-0.310424, 0, -0.164105, -0.354769], [0, -0.343717, -0.268716, 0]]
    torch.testing.assert_close(
        core(model, values)[0], torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_tssa_is_the_gradient_of_the_coding_rate_at_fixed_membership():
    model = mixer(3)
    values = sequences(9, 6, batch=1).requires_grad_()
    split = values[0].unflatten(-1, (3, 2)).transpose(0, 1)
    member = model.membership(split[None].square())[0].detach()
    counts = member.sum(-1)
    inside = (member[..., None] * split.square()).sum(1) / counts[:, None]
    rate = 0.5 * (counts / 9 * torch.log1p(inside).sum(-1)).sum()
    (descent,) = torch.autograd.grad(-9 * rate, values)
    torch.testing.assert_close(core(model, values), descent, atol=1e-7, rtol=0)


def test_one_head_has_a_closed_form():
    model, values = mixer(1), sequences(9, 6)
    wanted = -values / (1 + values.square().mean(1, keepdim=True))
    torch.testing.assert_close(core(model, values), wanted, atol=1e-7, rtol=0)


@pytest.mark.parametrize("place", [ANYWHERE, IN_ORDER], ids=["any order", "causal"])
def test_tssa_is_odd_and_never_enlarges(place):
    model, values = mixer(3, place=place), sequences(9, 6)
    output = core(model, values)
    assert torch.equal(core(model, -values), -output)
    assert (output.abs() <= values.abs()).all()


def test_only_the_form_without_order_follows_a_permutation():
    x, order = sequences(9, 6), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    free, ordered = mixer(3), mixer(3, place=IN_ORDER)
    torch.testing.assert_close(free(x[:, order]), free(x)[:, order], atol=1e-12, rtol=0)
    assert (ordered(x[:, order]) - ordered(x)[:, order]).abs().max() > 1e-2


def test_rescaling_a_channel_leaves_the_membership():
    model, squares = mixer(3), sequences(9, 6).unflatten(-1, (3, 2)).transpose(1, 2).square()
    scales = torch.tensor([0.1, 7.0], dtype=torch.float64)
    torch.testing.assert_close(
        model.membership(squares * scales), model.membership(squares), atol=1e-12, rtol=0
    )


def test_later_tokens_change_nothing_before_them():
    model, x = mixer(3, place=IN_ORDER), sequences(9, 6)
    changed = torch.cat([x[:, :5], sequences(4, 6)], 1)
    assert torch.equal(model(changed)[:, :5], model(x)[:, :5])
    assert (model(changed)[:, 5:] - model(x)[:, 5:]).abs().max() > 1e-2


def test_the_causal_form_is_not_the_other_behind_a_mask():
    free, ordered = mixer(3), mixer(3, place=IN_ORDER)
    with torch.no_grad():
        ordered.score_bias.zero_()
    free.load_state_dict(ordered.state_dict(), strict=False)
    x = sequences(9, 6)
    assert (free(x)[:, -1] - ordered(x)[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [8, 1]], ids=str)
def test_tokens_that_come_one_after_the_other_give_the_same(pieces):
    model, x = mixer(3, place=IN_ORDER), sequences(9, 6)
    state, outputs = model.start(x), []
    for piece in x.split(pieces, 1):
        y, state = model.extend(piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), model(x), atol=1e-12, rtol=0)
    assert state.squares[0].numel() + state.weighted[0].numel() + state.membership[0].numel() == 15


@pytest.mark.parametrize("place", [ANYWHERE, IN_ORDER], ids=["any order", "causal"])
def test_an_unseen_token_and_a_batch_mate_change_nothing(place):
    model, x = mixer(3, place=place), sequences(9, 6)
    seen = mask("padding", 9)
    other = torch.where(seen[:, 0, 0, :, None], x, 1e3)
    assert torch.equal(model(other, seen), model(x, seen))
    torch.testing.assert_close(model(x[1:2], seen[1:2]), model(x, seen)[1:2], atol=1e-12, rtol=0)
    alone = model(x[1:2, :4])
    torch.testing.assert_close(model(x, seen)[1:2, :4], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("place", [ANYWHERE, IN_ORDER], ids=["any order", "causal"])
@pytest.mark.parametrize("seen", MASKS)
def test_large_inputs_stay_finite(seen, place):
    model = mixer(3, place=place).float()
    assert all_finite(model, 3000 * sequences(63, 6).float(), mask(seen, 63))
    assert all_finite(model, torch.zeros(3, 63, 6), mask(seen, 63))


@pytest.mark.parametrize("place", [ANYWHERE, IN_ORDER], ids=["any order", "causal"])
def test_bfloat16_is_within_three_percent(place):
    model, x = mixer(3, place=place), sequences(63, 6)
    wanted = model(x)
    found = model.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_statistics_of_bfloat16_tokens_are_kept_in_float32():
    assert drift_in_bfloat16(mixer(3), 400) < 1e-3
    ordered = mixer(3, place=Place(num_tokens=400, causal="tokens"))
    assert drift_in_bfloat16(ordered, 400) < 1e-3
    token = torch.ones(1, 1, 6).bfloat16()
    _, state = ordered.extend(token, ordered.start(token))
    assert state.squares.dtype == state.weighted.dtype == state.membership.dtype == torch.float32


@pytest.mark.parametrize("place", [ANYWHERE, IN_ORDER], ids=["any order", "causal"])
def test_a_sequence_of_nothing_gives_the_bias_and_no_gradient(place):
    model, x = mixer(3, place=place), sequences(5, 6).requires_grad_()
    output = model(x, torch.zeros(1, 1, 1, 5, dtype=torch.bool))
    assert torch.equal(output, model.out.bias.expand_as(output))
    output.sum().backward()
    for leaf in (x, model.qkv.weight, model.qkv.bias, model.temperature):
        assert (leaf.grad == 0).all()


def test_what_cannot_be_is_refused():
    every_pair = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"tssa cannot keep single pairs .*softmax"):
        mixer(3)(sequences(5, 6), every_pair)
    with pytest.raises(ValueError, match="the length of the sequence is not fixed here"):
        CausalTssa(TssaConfig(), width=6, heads=3, place=Place(causal="tokens"))
    with pytest.raises(ValueError, match="for 4 tokens and is given 5"):
        mixer(3, place=Place(num_tokens=4, causal="tokens"))(sequences(5, 6))
    with pytest.raises(ValueError, match="width 6 is no multiple of heads 4"):
        mixer(4)
    with pytest.raises(ValueError, match="membership_eps is 0"):
        TssaConfig(membership_eps=0.0)


def test_the_place_decides_the_form_and_no_bias_takes_any_length():
    config = TssaConfig(score_bias="none")
    model = tssa_mixer(config, width=6, heads=3, place=Place(causal="tokens"))
    assert isinstance(model, CausalTssa)
    assert model(torch.zeros(1, 63, 6)).shape == (1, 63, 6)
    assert isinstance(tssa_mixer(config, width=6, heads=3, place=ANYWHERE), Tssa)


def test_a_layer_of_the_language_model_has_no_bias_but_that_of_scores():
    config = TssaConfig(qkv_bias=False, out_bias=False)
    model = tssa_mixer(config, width=48, heads=4, place=Place(num_tokens=1024, causal="tokens"))
    wanted = 2 * 48**2 + 4 + 4 * 1024
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted


def test_a_layer_of_the_smallest_vision_model_has_74116_weights():
    model = Tssa(TssaConfig(), width=192, heads=4, place=ANYWHERE)
    assert sum(parameter.numel() for parameter in model.parameters()) == 74_116
    assert 0.019 < model.qkv.weight.std() < 0.021
    assert (model.temperature == 1).all()


@pytest.mark.parametrize("name", ["tssa", "tssa_causal"])
def test_golden_files_are_met_with_every_gradient(shared, capsys, name):
    path = shared / f"golden/ops/{name}.npz"
    assert parity.main([str(path)]) == 0
    golden = parity.read(path)
    printed = capsys.readouterr().out
    assert printed.count(" ok\n") == 1 + len(golden.gradients)
    assert len(golden.gradients) == 1 + len(golden.weights)
