"""AFT-conv: AFT whose position bias depends on the distance alone, one small filter a head.

    mix[t, h] = sum_i exp(K[i, h] + w[h, i - t]) V[i, h] / sum_i exp(K[i, h] + w[h, i - t])
              = (conv(exp(K) V, exp(w) - 1) + sum_i exp(K[i]) V[i]) / (the same with V = 1)

where w is 0 beyond the filter, K has one channel a head, and conv correlates each channel with its
head's filter, with zeros around the grid. Gate and projections are `fit_model.attention.aft`'s.

    w[h] = gamma[h] (raw[h] - mean(raw[h])) / std(raw[h]) + beta[h],   gamma = beta = 0 at the start

so that it starts as AFT-simple with the keys of whole heads. Source: arXiv:2105.14103, eq. 6.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fit_model.attention.aft import Aft
from fit_model.attention.biased_means import SCORES_A_PART
from fit_model.attention.place import Place
from fit_model.checks import one_of, positive
from fit_model.recompute import recomputed

LEAST_LEFT = 1 / 16
"""Share of the sum over all keys below which a difference has lost too many digits."""
AXES = {"grid": 2, "line": 1}
DIVISORS = {"population": 0, "sample": 1}


@dataclass(frozen=True, kw_only=True)
class AftConvConfig:
    """AFT with a filter of biases a head."""

    kind: Literal["aft_conv"] = "aft_conv"
    kernel: int = 11
    """Side of the filter, odd."""
    axes: Literal["grid", "line"] = "grid"
    """Whether distances are rows and columns of a grid, or places in the sequence."""
    heads: int | None = None
    """Filters; None for the layer's heads. The paper's models have 16 to 384."""
    std: Literal["population", "sample"] = "population"
    """What the raw filter is divided by; the paper does not say which."""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}: it must be odd and at least 3")
        one_of(AXES, axes=self.axes)
        one_of(DIVISORS, std=self.std)
        if self.heads is not None:
            positive(heads=self.heads)


class FilterBias(nn.Module):
    """w from raw, gamma and beta, as above; raw starts as N(0, 1), and must not be constant."""

    def __init__(self, heads: int, *, kernel: int, num_axes: int, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.raw = nn.Parameter(torch.randn(heads, *[kernel] * num_axes))
        self.gamma = nn.Parameter(torch.zeros(heads))
        self.beta = nn.Parameter(torch.zeros(heads))

    def forward(self, dtype: torch.dtype) -> Float[Tensor, "h rows columns"]:
        """The filters; those of a line have one row."""
        raw = self.raw.to(dtype).flatten(1)
        std, mean = torch.std_mean(raw, dim=1, correction=self.divisor, keepdim=True)
        gamma, beta = self.gamma.to(dtype)[:, None], self.beta.to(dtype)[:, None]
        return (gamma * (raw - mean) / std + beta).view(len(raw), -1, self.raw.shape[-1])


class AftConv(Aft):
    """AFT with a filter of biases a head, on a grid of place.grid or on a line of any length.

    Takes no class token; average the tokens instead, as the paper does. Every query sees every
    key. Cost: b n kernel^axes d in time, b n d in memory. Where the window holds nearly all weight
    and the filter suppresses it, the difference above has no digits left: such entries are computed
    again as softmaxes over all n keys, and only those, and so are those that underflow.
    Source: arXiv:2105.14103, eq. 6.
    """

    def __init__(self, config: AftConvConfig, *, width: int, heads: int, place: Place) -> None:
        heads = config.heads or heads
        if width % heads:
            raise ValueError(
                f"width {width} is no multiple of the {heads} heads of aft_conv; change heads"
            )
        super().__init__(
            config.kind, width=width, keys=heads, place=place, qkv_bias=config.qkv_bias
        )
        place.refuse_causal(operator=config.kind)
        if place.prefix:
            raise ValueError(
                f"aft_conv takes no class token, but {place.prefix} tokens come before the grid; "
                "leave them out and average the tokens, or use aft_full"
            )
        self.heads = heads
        self.grid: tuple[int, int] | None = None
        if config.axes == "grid":
            self.grid = place.raster(operator="aft_conv", otherwise="set axes to 'line'")
        self.position_bias = FilterBias(
            heads,
            kernel=config.kernel,
            num_axes=AXES[config.axes],
            divisor=DIVISORS[config.std],
        )

    def mix(
        self, key: Float[Tensor, "b n h"], value: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """The means weighted by exp(key + bias)."""
        rows, columns = grid = self.grid or (1, key.shape[1])
        if rows * columns != key.shape[1]:
            raise ValueError(
                f"aft_conv is built for a grid of {rows} x {columns} tokens and is given "
                f"{key.shape[1]}; build it for another grid"
            )
        value = value.unflatten(2, (self.heads, -1))
        bias = self.position_bias(key.dtype)
        return filtered_means(key, value, bias, grid=grid).flatten(2)

    def mixing_macs(self, num_tokens: int) -> int:
        """A filter over every channel of weights and weighted values."""
        size = self.position_bias.raw[0].numel()
        return num_tokens * size * (self.heads + self.out.in_features)


def filtered_means(
    key: Float[Tensor, "b n h"],
    value: Float[Tensor, "b n h w"],
    bias: Float[Tensor, "h rows columns"],
    *,
    grid: tuple[int, int],
) -> Float[Tensor, "b n h w"]:
    """Means of values weighted by exp(key + bias of the distance), by convolution where it can."""
    weights = (key - key.detach().amax(1, keepdim=True)).exp()[..., None]
    parts = torch.cat([weights, weights * value], -1)
    highest = bias.detach().flatten(1).amax(1).clamp(min=0.0)
    everything = parts.sum(1, keepdim=True) * (-highest).exp()[:, None]
    near = correlated(parts, shifted_expm1(bias, highest), grid=grid)
    weight, total = (near + everything).split([1, value.shape[-1]], -1)
    enough = weight >= LEAST_LEFT * everything[..., :1]
    enough = enough & (weight >= math.sqrt(torch.finfo(key.dtype).tiny))
    found = total / weight.where(enough, 1.0)
    lost = (~enough[..., 0]).nonzero()
    if not len(lost):
        return found
    size = max(1, SCORES_A_PART // (key.shape[1] * value.shape[-1]))
    softmax = partial(by_softmax, columns=grid[1])
    again = [recomputed(softmax, key, value, bias, part) for part in lost.split(size)]
    return found.index_put(lost.unbind(1), torch.cat(again))


def shifted_expm1(
    bias: Float[Tensor, "h rows columns"], highest: Float[Tensor, " h"]
) -> Float[Tensor, "h rows columns"]:
    """exp(-highest) (exp(bias) - 1), which neither overflows nor loses digits near bias = 0."""
    highest = highest[:, None, None]
    above, below = bias.clamp(min=0.0), bias.clamp(max=0.0)
    return torch.where(
        bias > 0, -(above - highest).exp() * (-above).expm1(), (-highest).exp() * below.expm1()
    )


def correlated(
    parts: Float[Tensor, "b n h c"],
    filters: Float[Tensor, "h rows columns"],
    *,
    grid: tuple[int, int],
) -> Float[Tensor, "b n h c"]:
    """Every channel correlated with its head's filter on the grid, with zeros around it."""
    maps = parts.flatten(2).transpose(1, 2).unflatten(2, grid)
    padding = (filters.shape[1] // 2, filters.shape[2] // 2)
    kernels = filters.repeat_interleave(parts.shape[-1], 0)[:, None]
    found = functional.conv2d(maps, kernels, padding=padding, groups=len(kernels))
    return found.flatten(2).transpose(1, 2).unflatten(2, parts.shape[2:])


def by_softmax(
    key: Float[Tensor, "b n h"],
    value: Float[Tensor, "b n h w"],
    bias: Float[Tensor, "h rows columns"],
    entries: Int64[Tensor, "m 3"],
    *,
    columns: int,
) -> Float[Tensor, "m w"]:
    """The means of single entries (batch, query, head), safe for every number."""
    batch, query, head = entries.unbind(1)
    places = torch.arange(key.shape[1], device=key.device)
    down = places // columns - query[:, None] // columns + bias.shape[1] // 2
    right = places % columns - query[:, None] % columns + bias.shape[2] // 2
    inside = (down >= 0) & (down < bias.shape[1]) & (right >= 0) & (right < bias.shape[2])
    place = (down * bias.shape[2] + right).where(inside, 0)
    near = bias.flatten(1)[head].gather(1, place).where(inside, 0.0)
    weights = (key[batch, :, head] + near).softmax(-1)
    return torch.einsum("mn,mnw->mw", weights, value[batch, :, head])
