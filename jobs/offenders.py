"""Which images of a step stand out, when it was not taken.

The images whose own loss is not finite, or else those with the highest losses; agreed on by all
workers, and only when a step is skipped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from jobs.notes import from_everyone

MOST = 3
"""With finite losses there is always a highest one, so few are named."""
MOST_NOT_FINITE = 16


@dataclass(frozen=True, kw_only=True)
class Offender:
    """An image that stands out."""

    id: str
    loss: float


class LineUp:
    """The images of one step on this worker, and their losses, left where they are."""

    def __init__(self) -> None:
        self._images: list[tuple[int, ...]] = []
        self._losses: list[Tensor] = []

    def add(self, images: Sequence[int], losses: Tensor) -> None:
        """Take a micro-batch: numbers of its images, none of padding, and its losses [b]."""
        self._images.append(tuple(images))
        self._losses.append(losses.detach())

    def offenders(self, ids: Sequence[str], *, device: torch.device) -> list[Offender]:
        """Those of all workers, the same for each; every worker calls it.

        Args:
            ids: of all images, by number.
            device: where the workers talk.
        """
        mine = [
            Offender(id=ids[image], loss=loss)
            for images, losses in zip(self._images, self._losses, strict=True)
            for image, loss in zip(images, losses.tolist(), strict=False)
        ]
        told = from_everyone([asdict(each) for each in standing_out(mine)], device=device)
        return standing_out(Offender(**each) for note in told for each in note)


def standing_out(found: Iterable[Offender]) -> list[Offender]:
    """Those that are not finite, or else the highest; an image that several workers hold is one."""
    images = {each.id: each for each in found}
    ranked = sorted(images.values(), key=lambda each: (-_height(each.loss), each.id))
    worst = [each for each in ranked if not math.isfinite(each.loss)]
    return worst[:MOST_NOT_FINITE] if worst else ranked[:MOST]


def _height(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def told(found: Sequence[Offender]) -> list[dict[str, Any]]:
    """JSON-able by any reader's rules, which know no nan."""
    return [{"id": each.id, "loss": number(each.loss)} for each in found]


def number(value: float) -> float | str:
    """A figure, or the name of what is none."""
    return value if math.isfinite(value) else str(value)
