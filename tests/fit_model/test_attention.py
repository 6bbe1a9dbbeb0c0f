"""Fused attention is the reference, forward and backward, also where nothing may be seen."""

import math

import pytest
import torch

from fit_model.attention.operators import OPERATORS


def loop(query, key, value, may_attend):
    """Softmax attention a number at a time, in float64."""
    output = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=torch.float64)
    may_attend = may_attend.expand(*query.shape[:-1], key.shape[-2])
    for b, h, q in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:-1])):
        seen = may_attend[b, h, q].nonzero().flatten()
        scores = [
            (query[b, h, q] * key[b, h, k]).sum() / math.sqrt(len(key[b, h, k])) for k in seen
        ]
        weights = [torch.exp(score - max(scores)) for score in scores]
        for weight, k in zip(weights, seen, strict=True):
            output[b, h, q] = output[b, h, q] + weight / sum(weights) * value[b, h, k]
    return output


def inputs(queries, keys, *, dtype):
    generator = torch.Generator().manual_seed(queries)
    shapes = (2, 2, queries, 4), (2, 2, keys, 4), (2, 2, keys, 4)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def masks(queries, keys):
    generator = torch.Generator().manual_seed(keys)
    some = torch.rand(2, 1, queries, keys, generator=generator) < 0.6
    some[..., 0] = True
    row = some.clone()
    row[1, :, queries // 2] = False
    padding = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    padding[0, ..., keys // 2 :] = False
    return {"everything": torch.ones(1, 1, 1, keys, dtype=torch.bool), "some": some,
            "a row sees nothing": row, "padding": padding}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("mask", ["everything", "some", "a row sees nothing", "padding"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (5, 1), (1, 5), (5, 3)])
def test_softmax_agrees_with_a_loop_forward_and_backward(name, mask, queries, keys):
    may_attend = masks(queries, keys)[mask]
    mine, wanted = (
        inputs(queries, keys, dtype=torch.float64),
        inputs(queries, keys, dtype=torch.float64),
    )
    got, expected = OPERATORS[name](*mine, may_attend=may_attend), loop(*wanted, may_attend)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    if expected.requires_grad:
        cotangent = torch.randn(got.shape, dtype=torch.float64)
        (got * cotangent).sum().backward()
        (expected * cotangent).sum().backward()
        for ours, theirs in zip(mine, wanted, strict=True):
            zeros = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
            torch.testing.assert_close(ours.grad, zeros, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mask", [None, "some", "a row sees nothing", "padding"])
@pytest.mark.parametrize("size", [1, 5, 63])
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
def test_fused_softmax_is_the_reference_forward_and_backward(mask, size, dtype, within):
    may_attend = None if mask is None else masks(size, size)[mask]
    mine, wanted = inputs(size, size, dtype=dtype), inputs(size, size, dtype=torch.float64)
    got = OPERATORS["softmax"](*mine, may_attend=may_attend)
    expected = OPERATORS["softmax_reference"](*wanted, may_attend=may_attend)
    torch.testing.assert_close(got.double(), expected, atol=within, rtol=0)
    cotangent = torch.randn(got.shape, dtype=torch.float64)
    (got * cotangent.to(dtype)).sum().backward()
    (expected * cotangent).sum().backward()
    for ours, theirs in zip(mine, wanted, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=4 * within, rtol=within)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(name):
    query, key, value = inputs(5, 5, dtype=torch.float32)
    nothing = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
    output = OPERATORS[name](query, key, value, may_attend=nothing)
    assert (output == 0).all()
    output.sum().backward()
    for tensor in (query, key, value):
        assert (tensor.grad == 0).all()
