"""Softmax attention by products of parts is the reference, forwards and backwards."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fit_model.attention import softmax, softmax_products
from fit_model.attention.softmax_products import SoftmaxProducts
from fit_model.attention.softmax_reference import softmax_reference

SHAPES = [(5, 3, 7, 11), (2, 2, 130, 40), (1, 1, 1, 9), (3, 2, 64, 1), (1, 4, 200, 300)]
"""Sequences, heads, queries, keys."""


def inputs(shape: tuple[int, int, int, int], *, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as heads give them: views whose heads are not outermost."""
    b, h, q, k = shape
    generator = torch.Generator().manual_seed(sum(shape))
    query = torch.randn(b, q, h, 6, generator=generator, dtype=torch.float64).transpose(1, 2)
    key = torch.randn(b, k, h, 6, generator=generator, dtype=torch.float64).transpose(1, 2)
    value = torch.randn(b, k, h, 4, generator=generator, dtype=torch.float64).transpose(1, 2)
    return [each.to(dtype).requires_grad_() for each in (query, key, value)]


def hidden_keys(b: int, k: int) -> Tensor:
    """Some keys of each sequence, never its first one."""
    hidden = torch.rand(b, 1, 1, k, generator=torch.Generator().manual_seed(0)) < 0.4
    hidden[..., 0] = False
    return hidden


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scores", [1, 600, 5000, 2**22])
@pytest.mark.parametrize("masked", ["all", "some"])
def test_products_of_parts_equal_the_reference_forwards_and_backwards(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int], scores: int, masked: str
) -> None:
    monkeypatch.setattr(softmax_products, "SCORES", scores)
    hidden = hidden_keys(shape[0], shape[3]) if masked == "some" else None
    ours, theirs = (inputs(shape, dtype=torch.float64) for _ in range(2))
    mixed = SoftmaxProducts.apply(*ours, hidden)
    expected = softmax_reference(*theirs, may_attend=None if hidden is None else ~hidden)
    change = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(
        torch.autograd.grad(mixed, ours, change),
        torch.autograd.grad(expected, theirs, change),
        strict=True,
    ):
        # gradients of keys and values are summed over parts in float32
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_half_precision_on_a_cpu_goes_by_products_and_other_precisions_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.dtype] = []
    apply = SoftmaxProducts.apply

    def noticed(query: Tensor, *others: Tensor | None) -> Tensor:
        seen.append(query.dtype)
        return apply(query, *others)

    monkeypatch.setattr(SoftmaxProducts, "apply", noticed)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        softmax.softmax(*inputs((2, 2, 9, 9), dtype=dtype))
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_stays_as_close_to_the_reference_as_bf16_can(
    shape: tuple[int, int, int, int],
) -> None:
    hidden = hidden_keys(shape[0], shape[3])
    half = inputs(shape, dtype=torch.bfloat16)
    exact = [each.detach().double().requires_grad_() for each in half]
    mixed = softmax.softmax(*half, may_attend=~hidden)
    expected = softmax_reference(*exact, may_attend=~hidden)
    assert mixed.dtype == torch.bfloat16
    assert relative(mixed, expected) < 1.5e-2
    for got, want in zip(
        torch.autograd.grad(mixed.sum(), half),
        torch.autograd.grad(expected.sum(), exact),
        strict=True,
    ):
        assert relative(got, want) < 3e-2


@pytest.mark.parametrize("masked", ["all", "some"])
@pytest.mark.parametrize("deviation", [1.0, 9.0, 100.0])
def test_large_scores_cost_no_more_precision_than_in_the_fused_kernel(
    deviation: float, masked: str
) -> None:
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([deviation**0.5, deviation**0.5, 1.0])[:, None, None, None, None]
    drawn = torch.randn(3, 2, 3, 150, 64, generator=generator) * scale
    may_attend = ~hidden_keys(2, 150) if masked == "some" else None
    change = torch.randn(2, 3, 150, 64, generator=generator)

    def found(attention: Any, dtype: torch.dtype) -> list[Tensor]:
        given = [each.to(torch.bfloat16).to(dtype).requires_grad_() for each in drawn]
        mixed = attention(*given)
        return [mixed, *torch.autograd.grad(mixed, given, change.to(dtype))]

    exact = found(lambda *qkv: softmax_reference(*qkv, may_attend=may_attend), torch.float64)
    ours = found(lambda *qkv: softmax.softmax(*qkv, may_attend=may_attend), torch.bfloat16)
    fused = found(
        lambda *qkv: scaled_dot_product_attention(*qkv, attn_mask=may_attend), torch.bfloat16
    )
    for got, theirs, want in zip(ours, fused, exact, strict=True):
        assert relative(got, want) < max(6e-3, 1.5 * relative(theirs, want))


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (2, 2, 0, 5)])
def test_no_sequences_and_no_queries_give_nothing(shape: tuple[int, int, int, int]) -> None:
    query, key, value = inputs(shape, dtype=torch.bfloat16)
    mixed = softmax.softmax(query, key, value)
    assert mixed.shape == (*shape[:3], 4)
    assert all(each.abs().sum() == 0 for each in torch.autograd.grad(mixed.sum(), [key, value]))


def test_a_second_derivative_is_refused_rather_than_left_out() -> None:
    ours = inputs((1, 2, 5, 5), dtype=torch.bfloat16)
    mixed = softmax.softmax(*ours).sum()
    torch.autograd.grad(mixed, ours, retain_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative: leave create_graph out"):
        torch.autograd.grad(mixed, ours, create_graph=True)


def relative(got: Tensor, want: Tensor) -> float:
    """The size of the difference to that of what is wanted, or to 1 where that is tiny."""
    return float(
        (got.detach().double() - want.detach()).norm() / want.detach().norm().clamp(min=1.0)
    )
