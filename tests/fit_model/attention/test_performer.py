"""Performer is its formula, forward and backward, and approaches softmax as it should."""

import math
from functools import partial

import pytest
import torch

from fit_model import parity
from fit_model.attention import favor
from fit_model.attention.performer import Performer, PerformerConfig, redraw_features
from fit_model.attention.place import Place
from fit_model.attention.softmax_reference import softmax_reference
from tests.fit_model.attention.mixing import (
    MASKS,
    everywhere_random,
    mask,
    same_forward_and_backward,
    seen_tokens,
    sequences,
)

CAUSAL = {"any order": "none", "causal": "tokens"}
SETTINGS = {
    "ours": {},
    "no eps": {"eps": 0.0},
    "their maximum": {"stabiliser": "projection"},
    "a large eps": {"eps": 0.1, "features": 3},
}


def mixer(heads, *, width=6, causal="none", **settings):
    torch.manual_seed(heads)
    config = PerformerConfig(**({"features": 5} | settings))
    model = Performer(config, width=width, heads=heads, place=Place(causal=causal))
    return everywhere_random(model, seed=heads)


def exponents_of(row, omega, config):
    """u - g of one token, a feature at a time, and what its maximum is taken of."""
    scaled = row * len(row) ** -0.25
    u = torch.stack([sum(scaled * o) for o in omega])
    exponents = u - sum(scaled**2) / 2
    return exponents, u.detach() if config.stabiliser == "projection" else exponents


def loop(model, x, may_attend):
    """One query after another; a causal one meets the keys up to itself as if these were all."""
    config, d = model.config, x.shape[-1] // model.heads
    query, key, value = (x @ w.weight.T + w.bias for w in (model.query, model.key, model.value))
    output = []
    for b in range(x.shape[0]):
        seen, heads = seen_tokens(may_attend, b, x.shape[1]), []
        for h in range(model.heads):
            part, rows = slice(h * d, (h + 1) * d), []
            offered = {s: exponents_of(key[b, s, part], model.omega, config) for s in seen}
            for t in range(x.shape[1]):
                keys = [s for s in seen if s <= t or model.sight is None]
                asked, tops = exponents_of(query[b, t, part], model.omega, config)
                asked = torch.exp(asked - tops.max()) + config.eps
                shift = torch.stack([offered[s][1] for s in keys]).max() if keys else 0.0
                mixed, total = torch.zeros(d, dtype=torch.float64), 0.0
                for s in keys:
                    score = (asked * (torch.exp(offered[s][0] - shift) + config.eps)).sum()
                    mixed, total = mixed + score * value[b, s, part], total + score
                rows.append(mixed / total if keys else mixed)
            heads.append(torch.stack(rows))
        output.append(torch.cat(heads, -1) @ model.out.weight.T + model.out.bias)
    return torch.stack(output)


@pytest.mark.parametrize("causal", CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize(("num_tokens", "heads"), [(1, 1), (5, 1), (5, 3)])
def test_performer_is_a_loop_forward_and_backward(
    monkeypatch, num_tokens, heads, seen, settings, causal
):
    monkeypatch.setattr(favor, "AT_ONCE", 2)
    x, may_attend = sequences(num_tokens, 6).requires_grad_(), mask(seen, num_tokens)
    model = mixer(heads, causal=causal, **settings)
    same_forward_and_backward(
        [model(x, may_attend)], [loop(model, x, may_attend)], [x, *model.parameters()]
    )


@pytest.mark.parametrize("causal", CAUSAL.values(), ids=CAUSAL)
def test_performer_is_a_loop_on_63_tokens(monkeypatch, causal):
    monkeypatch.setattr(favor, "AT_ONCE", 16)
    x, model = sequences(63, 4, batch=1).requires_grad_(), mixer(2, width=4, causal=causal)
    may_attend = torch.ones(1, 1, 1, 63, dtype=torch.bool)
    may_attend[..., 20:41] = False
    leaves = [x, *model.parameters()]
    same_forward_and_backward([model(x, may_attend)], [loop(model, x, may_attend)], leaves)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_no_token_sees_a_later_one_eps_or_not(settings):
    model, x = mixer(2, causal="tokens", **settings), sequences(150, 6)
    later = x.clone()
    later[:, 90:] = 30 * torch.randn_like(later[:, 90:])
    torch.testing.assert_close(model(later)[:, :90], model(x)[:, :90], atol=1e-12, rtol=0)
    assert (model(later)[:, 90:] - model(x)[:, 90:]).abs().max() > 1e-2


@pytest.mark.parametrize("causal", CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_gradients_are_differences(causal, eps):
    model, x = mixer(2, causal=causal, eps=eps), sequences(5, 6, batch=1)
    assert torch.autograd.gradcheck(model, x.requires_grad_(), atol=1e-7)


def test_the_last_of_causal_tokens_sees_what_every_token_sees():
    free, ordered, x = mixer(2), mixer(2, causal="tokens"), sequences(150, 6)
    torch.testing.assert_close(ordered(x)[:, -1], free(x)[:, -1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", CAUSAL.values(), ids=CAUSAL)
def test_weights_of_a_query_sum_to_1(causal):
    q, k = sequences(9, 8)[:, None], sequences(9, 8, seed=1)[:, None]
    omega = favor.orthogonal_features(20, width=8).double()
    mix = favor.mix if causal == "none" else partial(favor.causal_mix, chunk=1)
    ones = mix(q, k, torch.ones_like(q), omega, seen=None, stabiliser="exponent", eps=1e-4)
    torch.testing.assert_close(ones, torch.ones_like(q), atol=1e-12, rtol=0)


def test_only_without_positions_does_performer_follow_a_permutation():
    x, order = sequences(9, 6), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    free, ordered = mixer(3), mixer(3, causal="tokens")
    torch.testing.assert_close(free(x[:, order]), free(x)[:, order], atol=1e-12, rtol=0)
    assert (ordered(x[:, order]) - ordered(x)[:, order]).abs().max() > 1e-2


def error(features, *, draws, scale=0.25, width=32, tokens=48):
    """How far features are from softmax, relative, root mean square over draws."""
    generator = torch.Generator().manual_seed(features)
    squares = []
    for _ in range(draws):
        q, k, v = torch.randn(3, 1, 1, tokens, width, generator=generator, dtype=torch.float64).mul(
            torch.tensor([scale, scale, 1.0], dtype=torch.float64)[:, None, None, None, None]
        )
        omega = favor.orthogonal_features(features, width=width, generator=generator).double()
        found = favor.mix(q, k, v, omega, seen=None, stabiliser="exponent", eps=0.0)
        wanted = softmax_reference(q, k, v)
        squares.append(float((found - wanted).square().sum() / wanted.square().sum()))
    return math.sqrt(sum(squares) / draws)


def test_the_error_falls_with_the_root_of_the_features():
    few, some, many = (error(count, draws=8) for count in (256, 1024, 4096))
    assert 0.02 < few < 0.08
    for fewer, more in ((few, some), (some, many)):
        assert 0.35 < math.log(fewer / more) / math.log(4) < 0.65


def test_directions_lean_to_no_side():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [favor.orthogonal_features(4, width=4, generator=generator) for _ in range(600)]
    )
    # the largest of 16 means of 600 coordinates, each of variance 1, is beyond 0.2 once in 50,000
    assert drawn.mean(0).abs().max() < 0.2
    assert (drawn.diagonal(dim1=1, dim2=2) > 0).double().mean(0).sub(0.5).abs().max() < 0.1


def test_blocks_of_features_are_orthogonal_with_gaussian_lengths():
    omega = favor.orthogonal_features(4000, width=8).double()
    blocks = omega.unflatten(0, (-1, 8))
    scores = blocks @ blocks.transpose(1, 2)
    lengths = scores.diagonal(dim1=1, dim2=2)
    assert (scores - torch.diag_embed(lengths)).abs().max() < 1e-4
    assert abs(float(lengths.mean()) - 8) < 0.3
    assert abs(float(lengths.var()) - 16) < 3  # chi squared with 8 degrees of freedom
    assert favor.orthogonal_features(13, width=8).shape == (13, 8)


def test_features_stay_until_they_are_drawn_anew():
    model, x = mixer(2), sequences(5, 6)
    before, weights = model(x), model.omega.clone()
    assert torch.equal(model(x), before)
    assert redraw_features(torch.nn.Sequential(model), generator=torch.Generator()) == 1
    assert not torch.equal(model.omega, weights)
    drawn = model.omega.clone()
    model.redraw(generator=torch.Generator())
    assert torch.equal(model.omega, drawn)
    assert "omega" in model.state_dict()
    assert "omega" not in dict(model.named_parameters())


@pytest.mark.parametrize(("width", "heads", "wanted"), [(128, 4, 110), (64, 1, 266), (4, 4, 1)])
def test_a_head_has_d_ln_d_features(width, heads, wanted):
    model = Performer(PerformerConfig(), width=width, heads=heads, place=Place())
    assert model.omega.shape == (wanted, width // heads)


@pytest.mark.parametrize("name", ["performer_softmax", "performer_softmax_eps0"])
def test_golden_performers_are_met(shared, name):
    assert parity.main([str(shared / f"golden/ops/{name}.npz"), "--tolerance", "1e-13"]) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"features": 0}, "features is 0"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"eps": math.nan}, "eps is nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        PerformerConfig(**settings)
