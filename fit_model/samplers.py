"""From noise to pictures, step by step: DDIM and DDPM.

Time runs from 1 to 0 in equal steps. At each the network tells picture and noise apart, and the
two are mixed again with less noise:

    next = sqrt(gamma') clean + k noise + sigma fresh

    ddim        k = sqrt(1 - gamma')                              sigma = 0
    ddpm        k = sqrt(alpha) (1 - gamma') / sqrt(1 - gamma)    sigma^2 = 1 - alpha
    ddpm@small  the same k                 sigma^2 = (1 - alpha) (1 - gamma') / (1 - gamma)

with gamma now, gamma' at the next time and alpha = gamma / gamma'. As noise = (noisy - sqrt(gamma)
clean) / sqrt(1 - gamma), the mean of ddpm is the official one, without its difference of numbers
that are nearly the same.
Source: google-research/pix2seq, models/diffusion_utils.py; Ho et al. 2020, arXiv:2006.11239;
Song et al. 2021, arXiv:2010.02502; time shift: Chen et al. 2022, arXiv:2208.04202.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from fit_model.checks import finite, one_of, positive
from fit_model.noise import SMALLEST_VARIANCE, Schedule, Values, estimate
from fit_model.noise import schedule as schedule_of

Share = Float64[Tensor, ""]
"""A gamma, in float64: 1 - gamma and gamma / gamma' lose too many digits in float32."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How much of the noise stays, and how much fresh noise (its deviation) replaces it."""

    kept: Share
    fresh: Share | None = None


def _ddim(now: Share, then: Share) -> Mix:
    return Mix(kept=(1 - then).sqrt())


def _ddpm_large(now: Share, then: Share) -> Mix:
    alpha = (now / then).clamp(max=1)
    return Mix(kept=alpha.sqrt() * (1 - then) / (1 - now).sqrt(), fresh=(1 - alpha).sqrt())


def _ddpm_small(now: Share, then: Share) -> Mix:
    large, alpha = _ddpm_large(now, then), (now / then).clamp(max=1)
    return Mix(kept=large.kept, fresh=((1 - alpha) * (1 - then) / (1 - now)).sqrt())


SAMPLERS: dict[str, Callable[[Share, Share], Mix]] = {
    "ddim": _ddim,
    "ddpm": _ddpm_large,
    "ddpm@large": _ddpm_large,
    "ddpm@small": _ddpm_small,
}


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How pictures are drawn from a diffusion model."""

    sampler: str = "ddim"
    steps: int = 100
    """How often the network runs; with guidance twice as often."""
    schedule: str | None = None
    """None: the one of training."""
    guidance: float = 0.0
    """How much more than usual the label counts; 0 is plain conditional sampling."""
    time_shift: float = 0.0
    """How many steps further than one each step denoises, so that the network is told of more noise
    than there is."""

    def __post_init__(self) -> None:
        one_of(SAMPLERS, sampler=self.sampler)
        positive(steps=self.steps)
        finite(guidance=(self.guidance,), time_shift=(self.time_shift,))
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}: 0 is none, larger obeys the label more")
        if self.time_shift <= -1:
            raise ValueError(f"time_shift is {self.time_shift}: above -1, or time does not advance")
        if self.schedule is not None:
            schedule_of(self.schedule)


def guided(with_label: Values, without_label: Values, *, guidance: float) -> Values:
    """(1 + w) conditional - w unconditional; Ho & Salimans 2022, arXiv:2207.12598."""
    return (1 + guidance) * with_label - guidance * without_label


def times(
    *, steps: int, time_shift: float
) -> tuple[Float64[Tensor, " {steps}"], Float64[Tensor, " {steps}"]]:
    """The time of every step, from 1 down to 1 / steps, and the time that it leads to."""
    number = torch.arange(steps, dtype=torch.float64)
    return 1 - number / steps, (1 - (number + 1 + time_shift) / steps).clamp(min=0)


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    start: Values,
    *,
    config: SamplingConfig,
    schedule: Schedule,
    prediction: str,
    limit: float | None,
    draw: Callable[[], Tensor],
    progress: Callable[[], None] | None = None,
) -> Values:
    """The picture that the last step sees in what began as the noise `start`.

    Args:
        denoise: what the network predicts of a noisy picture at a gamma (0-d, as `start`); what it
            carries from step to step, and the guidance, are its own business.
        start: standard normal noise.
        config: which sampler, and how many steps.
        schedule: gamma(t) of training, used unless the config names another.
        prediction: what `denoise` predicts, a name of PREDICTIONS.
        limit: the clean estimate of every step is clipped to +-limit; None clips nothing.
        draw: the next standard normal noise, like `start`; ddim never calls it, ddpm once between
            two steps.
        progress: called after every step.
    """
    curve = schedule if config.schedule is None else schedule_of(config.schedule)
    here, there = times(steps=config.steps, time_shift=config.time_shift)
    gammas, next_gammas = curve(here).clamp(max=1 - SMALLEST_VARIANCE), curve(there)
    shown = gammas.to(start)
    noisy, clean = start, start
    for step, (now, then) in enumerate(zip(gammas, next_gammas, strict=True)):
        found = estimate(denoise(noisy, shown[step]), noisy, now, kind=prediction, limit=limit)
        clean = found.clean
        if step + 1 < config.steps:
            mix = SAMPLERS[config.sampler](now, then)
            noisy = then.sqrt() * clean + mix.kept * found.noise
            if mix.fresh is not None:
                noisy = noisy + mix.fresh * draw()
        if progress is not None:
            progress()
    return clean
