"""Operators that look back a chunk at a time: a token sees its own chunk and those before it."""

import math

import pytest
import torch

from fit_model.attention import biased_means, favor
from fit_model.attention.mixers import CAUSAL_MIXERS, MIXERS, build_mixer
from fit_model.attention.place import Place
from tests.fit_model.attention.mixing import (
    MASKS,
    all_finite,
    everywhere_random,
    mask,
    same_forward_and_backward,
    seen_tokens,
    sequences,
)

WIDTH, HEADS = 6, 3
OPERATORS = (
    "tssa",
    "aft_simple",
    "aft_full@rank=2",
    "aft_full@rank=none,hidden=4",
    "aft_local@window=3,rank=2",
    "aft_local@window=0,rank=none",
    "performer@features=5,eps=0.1",
    "performer@features=5,stabiliser=projection",
)


def mixer(operator, *, seed=0, **place):
    torch.manual_seed(seed)
    built = build_mixer(
        operator, width=WIDTH, heads=HEADS, place=Place(**({"num_tokens": 70} | place))
    )
    return everywhere_random(built, seed=seed)


def in_chunks(operator, chunk, *, seed=0):
    return mixer(operator, seed=seed, causal="chunks", chunk=chunk)


def project(layer, x):
    return x @ layer.weight.double().T + (0.0 if layer.bias is None else layer.bias.double())


def tssa(model, x, sights):
    """Statistics of the tokens in sight of each; Pi of a token is fixed by its own sight."""
    values = project(model.qkv, x).unflatten(-1, (HEADS, -1))
    squares, members = values.square(), {}
    for t, sight in enumerate(sights):
        energy = sum((squares[s] for s in sight), torch.zeros_like(squares[0]))
        share = squares[t] / energy.clamp_min(1e-12) + model.score_bias[:, t]
        members[t] = (model.temperature[:, 0] * share.sum(-1)).softmax(0)
    rows = []
    for t, sight in enumerate(sights):
        zero = torch.zeros_like(squares[0])
        total = sum((members[s][:, None] for s in sight), zero[:, :1]) + 1e-8
        moment = sum((members[s][:, None] * squares[s] for s in sight), zero) / total
        rows.append((-values[t] * members[t][:, None] / (1 + moment)).flatten())
    return project(model.out, torch.stack(rows))


def aft(model, x, sights):
    """Means weighted by exp(key + bias) over the tokens in sight, as softmaxes of single rows."""
    query, key, value = (project(each, x) for each in (model.query, model.key, model.value))
    n = len(x)
    bias = torch.zeros(n, n, dtype=torch.float64)
    if hasattr(model, "position_bias"):
        bias = model.position_bias.block(slice(0, n), slice(0, n), dtype=torch.float64)
    if model.kind == "aft_local":
        place = torch.arange(n)
        bias = bias * ((place[:, None] - place).abs() < model.window)
    rows = []
    for t, sight in enumerate(sights):
        weights = (key[sight] + bias[t, sight, None]).softmax(0)
        rows.append(query[t].sigmoid() * (weights * value[sight]).sum(0))
    return project(model.out, torch.stack(rows))


def performer(model, x, sights):
    """Features of the keys in sight, shifted by the largest exponent among them."""
    config, omega, d = model.config, model.omega.double(), WIDTH // HEADS
    query, key, value = (project(each, x) for each in (model.query, model.key, model.value))
    rows = []
    for t, sight in enumerate(sights):
        heads = []
        for part in (slice(h * d, (h + 1) * d) for h in range(HEADS)):
            u_query = omega @ query[t, part] * d**-0.25
            asked = (u_query - u_query.max()).exp()
            if config.stabiliser == "projection":
                g = query[t, part].square().sum() / (2 * math.sqrt(d))
                asked = (u_query - g - u_query.max().detach()).exp()
            u = key[sight][:, part] @ omega.T * d**-0.25
            exponents = u - key[sight][:, part].square().sum(-1, keepdim=True) / (2 * math.sqrt(d))
            peaks = u.detach() if config.stabiliser == "projection" else exponents
            offered = (exponents - (peaks.max() if sight else 0.0)).exp() + config.eps
            scores = offered @ (asked + config.eps)
            total = scores.sum() if sight else 1.0
            heads.append((scores[:, None] * value[sight][:, part]).sum(0) / total)
        rows.append(torch.cat(heads))
    return project(model.out, torch.stack(rows))


LOOPS = {"tssa": tssa, "performer": performer}


def loop(operator, model, x, may_attend, *, chunk):
    """Every token of every sequence with the explicit set of those it sees."""
    by_token, n = LOOPS.get(operator.partition("@")[0], aft), x.shape[1]
    rows = []
    for b in range(len(x)):
        seen = seen_tokens(may_attend, b, n)
        sights = [[s for s in seen if s // chunk <= t // chunk] for t in range(n)]
        y = by_token(model, x[b].double(), sights)
        if operator == "tssa":  # a token that nobody sees is rescaled to zero
            hidden = torch.tensor([t not in seen for t in range(n)])
            y = torch.where(hidden[:, None], model.out.bias.double(), y)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("num_tokens", "chunk", "seen"),
    [
        *((n, chunk, "a sequence of nothing") for n in (1, 5) for chunk in (1, 2, 4)),
        (63, 4, "padding"),
        *((63, chunk, "everything") for chunk in (1, 2, 20, 40, 70)),
    ],
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_in_chunks_is_its_loop_forward_and_backward(
    monkeypatch, operator, num_tokens, chunk, seen
):
    monkeypatch.setattr(favor, "AT_ONCE", 16)
    model = in_chunks(operator, chunk, seed=num_tokens)
    x = sequences(num_tokens, WIDTH, batch=3 if num_tokens < 63 or chunk == 4 else 1)
    x, may_attend = x.requires_grad_(), mask(seen, num_tokens)
    found, wanted = model(x, may_attend), loop(operator, model, x, may_attend, chunk=chunk)
    same_forward_and_backward((found,), (wanted,), [x, *model.parameters()])


@pytest.mark.parametrize("operator", OPERATORS)
def test_chunks_of_one_token_are_the_token_causal_form(operator):
    x = sequences(63, WIDTH)
    assert torch.equal(in_chunks(operator, 1)(x), mixer(operator, causal="tokens")(x))


@pytest.mark.parametrize("operator", OPERATORS)
def test_in_a_single_chunk_everything_is_seen(operator):
    whole, free, x = in_chunks(operator, 70), mixer(operator), sequences(63, WIDTH)
    weights = whole.state_dict()
    if operator == "tssa":
        whole.score_bias.data.zero_()
        del weights["score_bias"]
    free.load_state_dict(weights)
    torch.testing.assert_close(whole(x), free(x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("chunk", [2, 4])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_token_depends_on_its_own_chunk_and_those_before_and_on_nothing_else(operator, chunk):
    model, x = in_chunks(operator, chunk), sequences(9, WIDTH, batch=1).requires_grad_()
    y = model(x)
    for t in range(9):
        (by_token,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
        met = [s for s in range(9) if by_token[0, s].any()]
        assert met == [s for s in range(9) if s // chunk <= t // chunk]


@pytest.mark.parametrize("chunk", [4, 40])
@pytest.mark.parametrize("operator", OPERATORS)
def test_later_chunks_change_nothing_not_even_a_rounding(operator, chunk):
    model, x = in_chunks(operator, chunk).float(), sequences(63, WIDTH).float()
    changed = x.clone()
    changed[:, 40:] *= -500
    assert torch.equal(model(changed)[:, :40], model(x)[:, :40])
    assert not torch.equal(model(changed)[:, 40:], model(x)[:, 40:])


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_shorter_batch_mate_has_the_results_it_has_alone(operator):
    model, x = in_chunks(operator, 4), sequences(24, WIDTH, batch=2)
    present = torch.ones(2, 1, 1, 24, dtype=torch.bool)
    present[1, ..., 8:] = False
    alone = model(x[1:, :8])
    torch.testing.assert_close(model(x, present)[1:, :8], alone, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize("chunk", [4, 40])
@pytest.mark.parametrize("operator", OPERATORS)
def test_numbers_of_thousands_stay_finite_and_so_do_their_gradients(operator, chunk, seen):
    model = in_chunks(operator, chunk).float()
    assert all_finite(model, 3000 * sequences(63, WIDTH).float(), mask(seen, 63))


@pytest.mark.parametrize("chunk", [4, 40])
@pytest.mark.parametrize("operator", ["aft_full@rank=none", "aft_local@window=30,rank=none"])
def test_nothing_is_lost_where_keys_and_biases_favour_tokens_far_apart(
    monkeypatch, operator, chunk
):
    model, x = in_chunks(operator, chunk), sequences(63, WIDTH, batch=1)
    with torch.no_grad():
        model.key.weight.mul_(200)
        model.position_bias.w.mul_(300)
    wanted = loop(operator, model, x, None, chunk=chunk)
    torch.testing.assert_close(model(x), wanted, atol=1e-11, rtol=1e-11)
    monkeypatch.setattr(biased_means, "by_softmax", None)
    with pytest.raises(TypeError):  # the sums that lose digits are really met
        model(x)


def test_chunks_that_come_one_after_the_other_give_the_same_and_parts_of_one_are_refused():
    model, x = in_chunks("tssa", 4), sequences(10, WIDTH)
    state, outputs = model.start(x), []
    for piece in x.split([4, 4, 2], 1):
        y, state = model.extend(piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), model(x), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="10 tokens end inside a chunk of 4; give whole chunks"):
        model.extend(x, state)


@pytest.mark.parametrize("name", sorted(MIXERS.keys() - set(CAUSAL_MIXERS)))
def test_an_operator_that_mixes_all_tokens_refuses_chunks_by_name(name):
    with pytest.raises(
        ValueError, match=f"^operator is .*: {name} mixes all tokens and has no causal form; use"
    ):
        mixer(name, num_tokens=4, grid=(2, 2), causal="chunks", chunk=2)
