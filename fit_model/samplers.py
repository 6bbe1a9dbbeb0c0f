"""From noise to pictures, step by step: DDIM and DDPM.

Time runs from 1 to 0 in equal steps. At each the network tells picture and noise apart, and less
noise is mixed in again; with gamma now, gamma' at the next time and alpha = gamma / gamma':

    ddim        next = sqrt(gamma') clean + sqrt(1 - gamma') noise
    ddpm        next = (noisy - (1 - alpha) / sqrt(1 - gamma) noise) / sqrt(alpha) + sigma fresh
                sigma^2 = 1 - alpha
    ddpm@small  sigma^2 = (1 - alpha) (1 - gamma') / (1 - gamma)

All of it in the precision of the start, in the official order: where alpha is tiny, at the first
step, ddpm subtracts what is nearly the same, which in float32 costs three digits. Another order
would be more exact and miss the official samples by more than their tolerance.
Source: google-research/pix2seq, models/diffusion_utils.py; Ho et al. 2020, arXiv:2006.11239;
Song et al. 2021, arXiv:2010.02502; time shift: Chen et al. 2022, arXiv:2208.04202.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fit_model.checks import finite, one_of, positive
from fit_model.noise import Estimate, Schedule, Values, estimate
from fit_model.noise import schedule as schedule_of

Share = Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Next:
    """What follows a step: its mean and the deviation of what is drawn around it, if anything."""

    mean: Values
    deviation: Share | None = None


def _ddim(noisy: Values, found: Estimate, now: Share, then: Share) -> Next:
    return Next(mean=then.sqrt() * found.clean + (1 - then).sqrt() * found.noise)


def _ddpm_large(noisy: Values, found: Estimate, now: Share, then: Share) -> Next:
    alpha = (now / then).clamp(max=1)
    mean = (noisy - (1 - alpha) / (1 - now).sqrt() * found.noise) / alpha.sqrt()
    return Next(mean=mean, deviation=(1 - alpha).sqrt())


def _ddpm_small(noisy: Values, found: Estimate, now: Share, then: Share) -> Next:
    alpha = (now / then).clamp(max=1)
    return Next(
        mean=_ddpm_large(noisy, found, now, then).mean,
        deviation=((1 - alpha) * (1 - then) / (1 - now)).sqrt(),
    )


SAMPLERS: dict[str, Callable[[Tensor, Estimate, Tensor, Tensor], Next]] = {
    "ddim": _ddim,
    "ddpm": _ddpm_large,
    "ddpm@large": _ddpm_large,
    "ddpm@small": _ddpm_small,
}
"""Of the noisy picture, what was found in it, gamma now and at the next time."""


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
    *, steps: int, time_shift: float, dtype: torch.dtype
) -> tuple[Float[Tensor, " {steps}"], Float[Tensor, " {steps}"]]:
    """The time of every step, from 1 down to 1 / steps, and the time that it leads to."""
    number = torch.arange(steps, dtype=dtype)
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
    precision = torch.promote_types(start.dtype, torch.float32)
    here, there = times(steps=config.steps, time_shift=config.time_shift, dtype=precision)
    below_one = 1 - torch.finfo(precision).eps  # 1 would leave no noise to divide by
    gammas, next_gammas = curve(here).clamp(max=below_one), curve(there)
    shown = gammas.to(start)
    noisy, clean = start, start
    for step, (now, then) in enumerate(zip(gammas, next_gammas, strict=True)):
        found = estimate(denoise(noisy, shown[step]), noisy, now, kind=prediction, limit=limit)
        clean = found.clean
        if step + 1 < config.steps:
            follows = SAMPLERS[config.sampler](noisy, found, now, then)
            noisy = follows.mean
            if follows.deviation is not None:
                noisy = noisy + follows.deviation * draw()
        if progress is not None:
            progress()
    return clean
