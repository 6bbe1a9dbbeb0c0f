"""Softmax-weighted means of every prefix of a sequence, exact for logits of any size.

    mean[t] = sum_{i <= t} exp(logit[i] - top[t]) value[i] / weight[t]
    weight[t] = sum_{i <= t} exp(logit[i] - top[t]),  top[t] = max_{i <= t} logit[i]

A part of a sequence is known by its top, weight and mean, and two parts merge into one without
overflow, underflow or cancellation. Doubling the reach of every position log2(n) times gives all
prefixes: n d log n work and n d memory. No maximum looks ahead, so nothing of a later token, not
even its rounding, reaches an earlier one. Source: AFT, arXiv:2105.14103, its causal mode; online
softmax, Milakov & Gimelshein 2018, arXiv:1805.02867.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Float[Tensor, "b n d"]
Several = Float[Tensor, "*s b n d"]


def doubled(logits: Rows, weights: Rows, values: Several) -> tuple[Rows, Rows, Several]:
    """Top, weight and mean of every prefix, of parts with these logits, weights and values.

    Several sets of values may share them.
    """
    step = 1
    while step < logits.shape[-2]:
        earlier, later = logits[..., :-step, :], logits[..., step:, :]
        top = torch.maximum(earlier, later)
        before = weights[..., :-step, :] * (earlier - top).exp()
        both = before + weights[..., step:, :] * (later - top).exp()
        mean = torch.lerp(values[..., step:, :], values[..., :-step, :], before / both)
        logits = torch.cat([logits[..., :step, :], top], -2)
        weights = torch.cat([weights[..., :step, :], both], -2)
        values = torch.cat([values[..., :step, :], mean], -2)
        step *= 2
    return logits, weights, values


class PrefixMeans(torch.autograd.Function):
    """`doubled` with a backward pass that is the same sum from the other end.

    With p[t, i] = exp(logit[i] - top[t]) / weight[t] at most 1 and g the gradient of the means:

        d value[i] = sum_{t >= i} p[t, i] g[t]
        d logit[i] = sum_{t >= i} p[t, i] (g[t] (value[i] - mean[t]) + weight[t] d weight[t])
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top, weight and mean of every prefix; the top counts as a constant."""
        top, weight, mean = doubled(logits, torch.ones_like(logits), values)
        ctx.save_for_backward(logits, values, top, weight, mean)
        ctx.mark_non_differentiable(top)
        return top, weight, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of logits and values."""
        logits, values, top, weight, mean = ctx.saved_tensors
        _, of_weight, of_mean = gradients
        asked = torch.stack([of_mean, weight * of_weight - of_mean * mean])
        ceiling, scale, means = doubled(-top.flip(-2), 1 / weight.flip(-2), asked.flip(-2))
        share = (logits + ceiling.flip(-2)).exp() * scale.flip(-2)
        of_values, of_all = share * means.flip(-2)
        return of_values * values + of_all, of_values


def prefix_means(logits: Rows, values: Rows) -> tuple[Rows, Rows, Rows]:
    """Top, weight and mean of the tokens up to and with each; differentiable once.

    The top is a constant for gradients: what depends on weight * exp(top) alone is unaffected.
    """
    top, weight, mean = PrefixMeans.apply(logits, values)
    return top, weight, mean


def suffix_means(logits: Rows, values: Rows) -> tuple[Rows, Rows, Rows]:
    """prefix_means of the tokens from each to the last."""
    top, weight, mean = prefix_means(logits.flip(1), values.flip(1))
    return top.flip(1), weight.flip(1), mean.flip(1)
