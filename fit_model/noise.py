"""How much noise a time means, and what a prediction says about the picture and the noise.

    noisy = sqrt(gamma) clean + sqrt(1 - gamma) noise

gamma(t) is the share of signal that is kept at time t in [0, 1]: about 1 at 0, about 0 at 1.
Source: google-research/pix2seq, models/diffusion_utils.py; Chen 2023, arXiv:2301.10972.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, "*values"]
Gamma = Float[Tensor, "*#values"]
"""The share of signal: one for all values (0-d), or anything that broadcasts against them."""
Schedule = Callable[[Tensor], Tensor]
"""gamma(t), elementwise, in the precision of t."""

SMALLEST_GAMMA = 1e-9
SMALLEST_VARIANCE = 1e-12
"""Least 1 - gamma that is divided by: without noise, what is predicted of it carries no weight."""


def _cosine(t: Tensor) -> Tensor:
    """cos^2((t + 0.0002) / 1.00025 pi / 2)"""
    return torch.cos((t + 0.0002) / 1.00025 * (math.pi / 2)).square()


def _cosine_between(t: Tensor, *, start: float, end: float, tau: float) -> Tensor:
    """(c(t) - c(1)) / (c(0) - c(1)), c(t) = |cos((start + t (end - start)) pi / 2)|^(2 tau)"""

    def curve(angle: Tensor) -> Tensor:
        return torch.cos(angle * (math.pi / 2)).square().pow(tau)

    return _stretched(curve, t, start=start, end=end)


def _sigmoid(t: Tensor, *, start: float, end: float, tau: float) -> Tensor:
    """(s(1) - s(t)) / (s(1) - s(0)), s(t) = sigmoid((start + t (end - start)) / tau)"""
    return _stretched(lambda place: torch.sigmoid(place / tau), t, start=start, end=end)


def _simple_linear(t: Tensor) -> Tensor:
    """1 - t"""
    return (1 - t).clamp(min=SMALLEST_GAMMA, max=1)


def _log(t: Tensor, *, start: float, end: float) -> Tensor:
    """(l(1) - l(t)) / (l(1) - l(0)), l(t) = log(start + t (end - start))

    The official one ends at 0, where noise says nothing about the picture; here it ends where the
    others do.
    """
    return _stretched(torch.log, t, start=start, end=end)


def _stretched(curve: Schedule, t: Tensor, *, start: float, end: float) -> Tensor:
    """A monotone curve between start and end, stretched to fall from 1 to the smallest gamma."""
    ends = torch.tensor([start, end], dtype=torch.float64, device="cpu")
    first, last = curve(ends).tolist()
    share = (curve(start + t * (end - start)) - last) / (first - last)
    return share.clamp(min=SMALLEST_GAMMA, max=1)


def _with_tau(curve: Callable[..., Tensor], start: str, end: str, tau: str) -> Schedule:
    return partial(curve, start=float(start), end=float(end), tau=float(tau))


def _with_direction(curve: Callable[..., Tensor], start: str, end: str, reverse: str) -> Schedule:
    swapped = {"t": True, "true": True, "f": False, "false": False}
    if reverse.strip().lower() not in swapped:
        raise ValueError(f"r is {reverse!r}: it must be t or f")
    if swapped[reverse.strip().lower()]:
        start, end = end, start
    return partial(curve, start=float(start), end=float(end))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": lambda: _cosine,
    "cosine@s,e,tau": partial(_with_tau, _cosine_between),
    "sigmoid@s,e,tau": partial(_with_tau, _sigmoid),
    "simple_linear": lambda: _simple_linear,
    "log@s,e,r": partial(_with_direction, _log),
}
"""By how their names are written; s, e, tau are numbers, r (reversed) is t or f."""


def schedule(name: str) -> Schedule:
    """The schedule of that name, such as "cosine" or "sigmoid@-3,3,0.9"; it can be pickled."""
    family, at, settings = name.partition("@")
    given = settings.split(",") if at else []
    form = next((form for form in SCHEDULES if form.partition("@")[:2] == (family, at)), None)
    if form is None or len(given) not in (0, 3):
        raise ValueError(f"schedule {name!r} is unknown{_meant(family, at)}")
    try:
        curve = SCHEDULES[form](*given)
    except ValueError as error:
        raise ValueError(f"schedule {name!r} cannot be read as {form!r}: {error}") from error
    # on the CPU, also where a model without memory is built to be filled
    gamma = curve(torch.linspace(0, 1, 1001, dtype=torch.float64, device="cpu"))
    if not (gamma.diff() <= 1e-12).all():  # NaN included
        raise ValueError(
            f"schedule {name!r} does not fall from 1 to 0: choose other numbers for {form!r}"
        )
    return curve


def _meant(family: str, at: str) -> str:
    """The form that was probably meant, and all that are known."""
    families = [form.partition("@")[0] for form in SCHEDULES]
    close = difflib.get_close_matches(family, families, n=1)
    forms = [form for form, its in zip(SCHEDULES, families, strict=True) if its in close]
    forms.sort(key=lambda form: ("@" in form) != bool(at))
    hint = f"; did you mean {forms[0]!r}?" if forms else ";"
    return f"{hint} known: {'; '.join(SCHEDULES)}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a noisy picture is believed to consist of."""

    clean: Values
    noise: Values


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network may predict: its true value, and what its output means."""

    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Of (clean, noise, gamma)."""
    clean: Callable[[Tensor, Tensor, Tensor], Tensor]
    """The picture, of (prediction, noisy, gamma)."""
    noise: Callable[[Tensor, Tensor, Tensor], Tensor]
    """The noise, of (prediction, noisy, gamma)."""


def noised(clean: Values, noise: Values, gamma: Gamma) -> Values:
    """sqrt(gamma) clean + sqrt(1 - gamma) noise"""
    return gamma.sqrt() * clean + (1 - gamma).sqrt() * noise


def velocity(clean: Values, noise: Values, gamma: Gamma) -> Values:
    """sqrt(gamma) noise - sqrt(1 - gamma) clean; "v" of Salimans & Ho 2022, arXiv:2202.00512."""
    return gamma.sqrt() * noise - (1 - gamma).sqrt() * clean


def clean_from_noise(noise: Values, noisy: Values, gamma: Gamma) -> Values:
    """(noisy - sqrt(1 - gamma) noise) / sqrt(gamma)"""
    return (noisy - (1 - gamma).sqrt() * noise) / gamma.sqrt()


def noise_from_clean(clean: Values, noisy: Values, gamma: Gamma) -> Values:
    """(noisy - sqrt(gamma) clean) / sqrt(1 - gamma)"""
    return (noisy - gamma.sqrt() * clean) / (1 - gamma).clamp(min=SMALLEST_VARIANCE).sqrt()


def clean_from_velocity(v: Values, noisy: Values, gamma: Gamma) -> Values:
    """sqrt(gamma) noisy - sqrt(1 - gamma) v"""
    return gamma.sqrt() * noisy - (1 - gamma).sqrt() * v


def noise_from_velocity(v: Values, noisy: Values, gamma: Gamma) -> Values:
    """sqrt(1 - gamma) noisy + sqrt(gamma) v"""
    return (1 - gamma).sqrt() * noisy + gamma.sqrt() * v


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(
        target=lambda clean, noise, gamma: noise,
        clean=clean_from_noise,
        noise=lambda prediction, noisy, gamma: prediction,
    ),
    "x": Prediction(
        target=lambda clean, noise, gamma: clean,
        clean=lambda prediction, noisy, gamma: prediction,
        noise=noise_from_clean,
    ),
    "v": Prediction(target=velocity, clean=clean_from_velocity, noise=noise_from_velocity),
}


def estimate(
    prediction: Values, noisy: Values, gamma: Gamma, *, kind: str, limit: float | None = None
) -> Estimate:
    """What a prediction of that kind says about the picture and the noise.

    With a limit the picture is clipped to +-limit and the noise is what then remains of the noisy
    one, as in official sampling.
    """
    meaning = PREDICTIONS[kind]
    clean = meaning.clean(prediction, noisy, gamma)
    if limit is None:
        return Estimate(clean=clean, noise=meaning.noise(prediction, noisy, gamma))
    clean = clean.clamp(min=-limit, max=limit)
    return Estimate(clean=clean, noise=noise_from_clean(clean, noisy, gamma))
