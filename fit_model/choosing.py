"""From logits to a level: guidance, temperature, top-k, top-p and one random number.

    logits = (1 + w) conditional - w unconditional
    p      = softmax(logits / temperature), then only the top_k likeliest levels, then of these the
             fewest that together reach top_p
    level  = the first whose cumulative p exceeds the random number; temperature 0: the likeliest

All in float64: what rounding leaves different between two ways of computing the same logits then
practically never reaches the level that is chosen.
Source: Ho & Salimans 2022, arXiv:2207.12598 (guidance); Holtzman et al. 2020, arXiv:1904.09751
(top-p).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fit_model import checks
from fit_model.samplers import guided

Chances = Float64[Tensor, "b v"]
SMALLEST_TEMPERATURE = 1e-3
"""Below it logits divided by it leave the range of numbers; 0 is what is meant."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How levels are drawn from an autoregressive model."""

    temperature: float = 1.0
    """Below 1 likely levels become likelier; 0 always takes the likeliest."""
    top_k: int | None = None
    """Only so many of the likeliest levels; None for all."""
    top_p: float | None = None
    """Only the likeliest levels that together have this probability; None for all."""
    guidance: float = 0.0
    """How much more than usual the label counts; 0 is plain conditional sampling."""

    def __post_init__(self) -> None:
        checks.finite(temperature=(self.temperature,), guidance=(self.guidance,))
        if self.temperature < 0.0 or 0.0 < self.temperature < SMALLEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature}: it must be at least 0; 0 takes the likeliest "
                "level, 1 is the model's own distribution"
            )
        if self.guidance < 0.0:
            raise ValueError(f"guidance is {self.guidance}: 0 is none, larger obeys the label more")
        if self.top_k is not None:
            checks.positive(top_k=self.top_k)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}: it must lie in (0, 1]; 1 keeps every level")


def choose(
    logits: Float[Tensor, "r v"], uniform: Float64[Tensor, " b"], *, config: DecodingConfig
) -> Int64[Tensor, " b"]:
    """One level an image.

    Args:
        logits: a row an image; with guidance b more rows follow, those without the label.
        uniform: a number in [0, 1) an image; temperature 0 does not look at it.
        config: how to choose.
    """
    if not (logits < float("inf")).all():  # NaN too; -inf is a level that cannot be
        raise ValueError("the model's numbers are not finite: it was saved after it had diverged")
    exact = logits.to(torch.float64)
    if config.guidance != 0.0:
        with_label, without_label = exact.chunk(2)
        exact = guided(with_label, without_label, guidance=config.guidance)
    if config.temperature == 0.0:
        return exact.argmax(-1)
    cumulative = chances(exact, config=config).cumsum(-1)
    # divided by itself the last one is exactly 1, so no random number lies beyond it
    cumulative = cumulative / cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform[:, None].contiguous(), right=True)[:, 0]


def chances(logits: Float64[Tensor, "b v"], *, config: DecodingConfig) -> Chances:
    """How likely each level is to be chosen, up to a factor; 0 for those left out."""
    found = (logits / config.temperature).softmax(-1)
    if config.top_k is None and config.top_p is None:
        return found
    ranked, level = found.sort(descending=True, stable=True)
    if config.top_k is not None:
        ranked[:, config.top_k :] = 0.0
    if config.top_p is not None:
        ranked = ranked / ranked.sum(-1, keepdim=True)
        likelier = ranked.cumsum(-1) - ranked
        ranked[:, 1:] = ranked[:, 1:].where(likelier[:, 1:] < config.top_p, 0.0)
    return torch.zeros_like(found).scatter(-1, level, ranked)


def uniforms(seeds: Int64[Tensor, " b"], *, count: int) -> Float64[Tensor, "b {count}"]:
    """`count` numbers in [0, 1) an image, each image's from a generator of its own."""
    return torch.stack(
        [
            torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds.tolist()
        ]
    )
