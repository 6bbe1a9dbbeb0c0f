"""BiXT's exchange is its formula for both streams, forward and backward."""

import math

import pytest
import torch
from torch.nn import functional

from fit_model import parity
from fit_model.attention.bixt import BidirectionalCross, BidirectionalLayer, BixtConfig
from tests.fit_model.attention.mixing import (
    MASKS,
    everywhere_random,
    mask,
    same_forward_and_backward,
    sequences,
)


def exchange(heads, *, widths=(6, 6), kind=BidirectionalCross, **settings):
    config = BixtConfig(**settings)
    model = kind(config, token_width=widths[0], latent_width=widths[1], heads=heads)
    return everywhere_random(model, seed=heads)


def valid_tokens(name, num_tokens):
    may_attend = mask(name, num_tokens)
    return None if may_attend is None else may_attend[:, 0, 0]


def both(exchanged):
    return exchanged.tokens, exchanged.latents


def read(asking, offering, x, y, seen, heads):
    """One stream reads another, a pair of positions at a time."""
    asks = x @ asking.r.weight.T + asking.r.bias
    offers = y @ offering.r.weight.T + offering.r.bias
    values = y @ offering.v.weight.T + offering.v.bias
    d = asks.shape[-1] // heads
    rows = []
    for q in range(len(x)):
        parts = []
        for h in range(heads):
            part = torch.zeros(d, dtype=torch.float64)
            own = slice(h * d, (h + 1) * d)
            scores = {k: (asks[q, own] * offers[k, own]).sum() / math.sqrt(d) for k in seen}
            total = sum(torch.exp(score) for score in scores.values())
            for k, score in scores.items():
                part = part + torch.exp(score) / total * values[k, own]
            parts.append(part)
        rows.append(torch.cat(parts) @ asking.out.weight.T + asking.out.bias)
    return torch.stack(rows)


def loop(model, tokens, latents, valid, heads):
    token_rows, latent_rows = [], []
    for b in range(len(tokens)):
        everyone = range(latents.shape[1])
        seen = [n for n in range(tokens.shape[1]) if valid is None or valid[b, n]]
        pair = tokens[b], latents[b]
        token_rows.append(read(model.tokens, model.latents, *pair, everyone, heads))
        latent_rows.append(read(model.latents, model.tokens, *pair[::-1], seen, heads))
    return torch.stack(token_rows), torch.stack(latent_rows)


@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize(
    ("num_tokens", "heads", "widths"),
    [
        (1, 1, (6, 6)),
        (1, 3, (6, 6)),
        (5, 1, (6, 6)),
        (5, 2, (4, 7)),
        (5, 3, (6, 6)),
        (9, 2, (7, 4)),
    ],
)
def test_an_exchange_is_a_loop_forward_and_backward(num_tokens, heads, widths, seen):
    model, valid = exchange(heads, widths=widths), valid_tokens(seen, num_tokens)
    tokens = sequences(num_tokens, widths[0]).requires_grad_()
    latents = sequences(4, widths[1], seed=1).requires_grad_()
    same_forward_and_backward(
        both(model(tokens, latents, valid)),
        loop(model, tokens, latents, valid, heads),
        [tokens, latents, *model.parameters()],
    )


def test_an_exchange_is_a_loop_on_63_tokens():
    model, tokens, latents = (
        exchange(2),
        sequences(63, 6, batch=1),
        sequences(3, 6, batch=1, seed=1),
    )
    leaves = [tokens.requires_grad_(), latents.requires_grad_(), *model.parameters()]
    wanted = loop(model, tokens, latents, None, 2)
    same_forward_and_backward(both(model(tokens, latents)), wanted, leaves)


def test_an_exchange_is_two_softmax_attentions():
    model, tokens, latents = exchange(3), sequences(9, 6), sequences(4, 6, seed=1)
    heads = [side.split(x) for side, x in ((model.tokens, tokens), (model.latents, latents))]
    (token_r, token_v), (latent_r, latent_v) = heads
    found = model(tokens, latents)
    for side, output, arguments in [
        (model.tokens, found.tokens, (token_r, latent_r, latent_v)),
        (model.latents, found.latents, (latent_r, token_r, token_v)),
    ]:
        mixed = functional.scaled_dot_product_attention(*arguments).transpose(1, 2).flatten(2)
        torch.testing.assert_close(output, side.out(mixed), atol=1e-12, rtol=0)


def test_tokens_and_latents_have_no_order():
    model, tokens, latents = exchange(3), sequences(9, 6), sequences(4, 6, seed=1)
    found = model(tokens, latents)
    turned = model(tokens.flip(1), latents.roll(1, 1))
    torch.testing.assert_close(turned.tokens, found.tokens.flip(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(turned.latents, found.latents.roll(1, 1), atol=1e-12, rtol=0)


def test_invalid_tokens_and_batch_mates_change_no_other():
    model, tokens, latents = exchange(3), sequences(9, 6), sequences(4, 6, seed=1)
    valid = valid_tokens("padding", 9)
    found = model(tokens, latents, valid)
    other = model(torch.where(valid[..., None], tokens, 1e3), latents, valid)
    torch.testing.assert_close(other.latents, found.latents, atol=0, rtol=0)
    torch.testing.assert_close(other.tokens[valid], found.tokens[valid], atol=0, rtol=0)
    alone = model(tokens[1:2], latents[1:2], valid[1:2])
    torch.testing.assert_close(alone.latents, found.latents[1:2], atol=1e-12, rtol=0)
    torch.testing.assert_close(alone.tokens, found.tokens[1:2], atol=1e-12, rtol=0)


def test_latents_without_a_valid_token_get_the_bias_and_send_no_gradient():
    model, tokens, latents = exchange(3), sequences(9, 6), sequences(4, 6, seed=1)
    leaves = [tokens.requires_grad_(), latents.requires_grad_()]
    found = model(tokens, latents, torch.zeros(1, 9, dtype=torch.bool)).latents
    assert torch.equal(found, model.latents.out.bias.expand_as(found))
    for grad in torch.autograd.grad(found.sum(), [*leaves, model.tokens.v.weight]):
        assert (grad == 0).all()


@pytest.mark.parametrize("seen", MASKS)
def test_large_inputs_stay_finite(seen):
    model = exchange(3).float()
    tokens, latents = (
        (3000 * x.float()).requires_grad_() for x in (sequences(63, 6), sequences(4, 6, seed=1))
    )
    outputs = both(model(tokens, latents, valid_tokens(seen, 63)))
    sum(output.sum() for output in outputs).backward()
    leaves = [tokens, latents, *model.parameters()]
    assert all(number.isfinite().all() for number in (*outputs, *(leaf.grad for leaf in leaves)))


def test_bfloat16_is_within_five_percent():
    model, tokens, latents = exchange(3), sequences(63, 6), sequences(4, 6, seed=1)
    wanted = both(model(tokens, latents))
    found = both(model.bfloat16()(tokens.bfloat16(), latents.bfloat16()))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_a_layer_adds_both_residuals_of_the_streams_as_they_were():
    model = exchange(2, widths=(6, 8), kind=BidirectionalLayer, layer_scale=0.5)
    tokens, latents = sequences(5, 6), sequences(3, 8, seed=1)
    normed = [
        functional.layer_norm(x, x.shape[-1:], stream.norm.weight, stream.norm.bias, 1e-6)
        for x, stream in ((tokens, model.tokens), (latents, model.latents))
    ]
    wanted = loop(model.exchange, *normed, None, 2)
    found = model(tokens, latents)
    for x, stream, ours, residual in [
        (tokens, model.tokens, found.tokens, wanted[0]),
        (latents, model.latents, found.latents, wanted[1]),
    ]:
        torch.testing.assert_close(ours, x + stream.layer_scale * residual, atol=1e-11, rtol=0)


def test_layer_scale_starts_as_asked_and_is_absent_otherwise():
    config = BixtConfig(layer_scale=1e-5, bias=False)
    layer = BidirectionalLayer(config, token_width=6, latent_width=6, heads=2)
    assert (layer.tokens.layer_scale == 1e-5).all()
    assert layer.exchange.tokens.r.bias is None
    plain = BidirectionalLayer(BixtConfig(), token_width=6, latent_width=6, heads=2)
    assert not any("layer_scale" in name for name, _ in plain.named_parameters())
    with pytest.raises(ValueError, match="bixt: 8 heads do not fit into widths 6 and 12"):
        BidirectionalCross(BixtConfig(), token_width=6, latent_width=12, heads=8)


@pytest.mark.parametrize("name", ["bixt", "bixt_block"])
def test_golden_files_are_met_with_every_gradient(shared, capsys, name):
    path = shared / f"golden/ops/{name}.npz"
    assert parity.main([str(path)]) == 0
    golden = parity.read(path)
    assert capsys.readouterr().out.count(" ok\n") == 2 + len(golden.gradients)
    assert len(golden.gradients) == 2 + len(golden.weights)
