"""XCA is its formula over channels, forward and backward."""

import pytest
import torch
from torch.nn import functional

from fit_model import parity
from fit_model.attention.place import Place
from fit_model.attention.xca import Xca, XcaConfig
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


def mixer(heads, *, width=6, **settings):
    model = Xca(XcaConfig(**settings), width=width, heads=heads, place=Place())
    return everywhere_random(model, seed=heads)


def loop(model, x, may_attend):
    """A pair of channels at a time, with sums over tokens written out."""
    width = x.shape[-1]
    d = width // model.heads
    projected = x @ model.qkv.weight.T + model.qkv.bias
    rows = []
    for b in range(x.shape[0]):
        seen = seen_tokens(may_attend, b, x.shape[1])
        columns = [[torch.zeros(())] * width for _ in range(x.shape[1])]
        norms = [sum(projected[b, n, c] ** 2 for n in seen) ** 0.5 for c in range(2 * width)]
        for i in range(width if seen else 0):
            h = i // d
            others = range(h * d, (h + 1) * d)
            weights = []
            for j in others:
                alike = sum(projected[b, n, i] * projected[b, n, width + j] for n in seen)
                score = model.temperature[h, 0, 0] * alike / norms[i] / norms[width + j]
                weights.append(torch.exp(score))
            for n in seen:
                columns[n][i] = sum(
                    weight / sum(weights) * projected[b, n, 2 * width + j]
                    for weight, j in zip(weights, others, strict=True)
                )
        rows += [torch.stack(row).double() @ model.out.weight.T + model.out.bias for row in columns]
    return torch.stack(rows).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("seen", MASKS)
@pytest.mark.parametrize(("num_tokens", "heads"), [(1, 1), (1, 3), (5, 1), (5, 2), (5, 3)])
def test_xca_is_a_loop_forward_and_backward(num_tokens, heads, seen):
    x, model = sequences(num_tokens, 6).requires_grad_(), mixer(heads)
    may_attend = mask(seen, num_tokens)
    found, wanted = model(x, may_attend), loop(model, x, may_attend)
    same_forward_and_backward([found], [wanted], [x, *model.parameters()])


def test_xca_is_a_loop_on_63_tokens():
    x, model = sequences(63, 4, batch=1).requires_grad_(), mixer(2, width=4)
    same_forward_and_backward([model(x)], [loop(model, x, None)], [x, *model.parameters()])


def test_xca_is_softmax_attention_of_normalised_transposed_tokens():
    model, x = mixer(3), sequences(9, 6)
    q, k, v = (x @ model.qkv.weight.T + model.qkv.bias).chunk(3, -1)
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    q, k, v = (t.unflatten(-1, (3, 2)).permute(0, 2, 3, 1) for t in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q * model.temperature, k, v, scale=1.0)
    wanted = mixed.permute(0, 3, 1, 2).flatten(2) @ model.out.weight.T + model.out.bias
    torch.testing.assert_close(model(x), wanted, atol=1e-12, rtol=0)


def test_one_token_attends_by_signs():
    model, x = mixer(1), sequences(1, 6, batch=1)
    q, k, v = (x @ model.qkv.weight.T + model.qkv.bias)[0, 0].chunk(3)
    attention = (model.temperature[0] * torch.outer(q.sign(), k.sign())).softmax(-1)
    wanted = (attention @ v) @ model.out.weight.T + model.out.bias
    torch.testing.assert_close(model(x)[0, 0], wanted, atol=1e-12, rtol=0)


def test_tokens_have_no_order_and_channels_of_queries_and_keys_no_scale():
    model, x = mixer(3), sequences(9, 6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    wanted = model(x)
    torch.testing.assert_close(model(x[:, order]), wanted[:, order], atol=1e-12, rtol=0)
    scales = torch.linspace(0.1, 30, 18, dtype=torch.float64)
    scales[12:] = 1
    with torch.no_grad():
        model.qkv.weight.mul_(scales[:, None])
        model.qkv.bias.mul_(scales)
    torch.testing.assert_close(model(x), wanted, atol=1e-12, rtol=0)
    with torch.no_grad():
        model.qkv.weight[12:].mul_(2)
    assert (model(x) - wanted).abs().max() > 1e-2


def test_an_unseen_token_and_a_batch_mate_change_nothing():
    model, x = mixer(3), sequences(9, 6)
    seen = mask("padding", 9)
    other = torch.where(seen[:, 0, 0, :, None], x, 1e3)
    assert torch.equal(model(other, seen), model(x, seen))
    torch.testing.assert_close(model(x[1:2], seen[1:2]), model(x, seen)[1:2], atol=1e-12, rtol=0)
    torch.testing.assert_close(model(x, seen)[1:2, :4], model(x[1:2, :4]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("seen", MASKS)
def test_large_inputs_stay_finite(seen):
    model = mixer(3).float()
    assert all_finite(model, 3000 * sequences(63, 6).float(), mask(seen, 63))
    with torch.no_grad():
        model.qkv.bias.zero_()
    assert all_finite(model, torch.zeros(3, 63, 6), mask(seen, 63))


def test_bfloat16_is_within_three_percent():
    model, x = mixer(3), sequences(63, 6)
    wanted = model(x)
    found = model.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_statistics_of_bfloat16_tokens_are_kept_in_float32():
    assert drift_in_bfloat16(mixer(3), 400) < 1e-3


def test_a_sequence_of_nothing_gives_the_bias_and_no_gradient():
    model, x = mixer(3), sequences(5, 6).requires_grad_()
    output = model(x, torch.zeros(1, 1, 1, 5, dtype=torch.bool))
    assert torch.equal(output, model.out.bias.expand_as(output))
    output.sum().backward()
    for leaf in (x, model.qkv.weight, model.qkv.bias, model.temperature):
        assert (leaf.grad == 0).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"xca cannot keep single pairs .*softmax"):
        mixer(3)(sequences(5, 6), torch.ones(1, 1, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"xca mixes all tokens and has no causal form; use"):
        Xca(XcaConfig(), width=6, heads=3, place=Place(causal="tokens"))
    with pytest.raises(ValueError, match="width 6 is no multiple of heads 4"):
        mixer(4)


def test_a_layer_of_the_smallest_vision_model_has_148228_weights():
    model = Xca(XcaConfig(), width=192, heads=4, place=Place())
    assert sum(parameter.numel() for parameter in model.parameters()) == 148_228


def test_the_golden_file_is_met_with_every_gradient(shared, capsys):
    path = shared / "golden/ops/xca.npz"
    assert parity.main([str(path)]) == 0
    golden = parity.read(path)
    assert capsys.readouterr().out.count(" ok\n") == 1 + len(golden.gradients)
    assert len(golden.gradients) == 1 + len(golden.weights)
