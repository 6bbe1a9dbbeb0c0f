"""Who stands in for images that cannot be read: the same on every worker, however many there are.

image -> the first of (image, *order.substitutes(step, image)) that can be read
"""

import threading
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import count

from jobs.errors import MachineFault
from pipeline.dataset import DamagedError
from pipeline.order import Order
from pipeline.records import ImageRecord


@dataclass(frozen=True, kw_only=True)
class Found:
    """Images that may be readable, in place of those that were wanted."""

    images: list[int]
    turns: tuple[int, ...]
    """Of each wanted image, how many were passed over: 0 for itself, 1 for its first stand-in."""
    damaged: tuple[int, ...]
    """All that were passed over."""


class StandIns:
    """Keeps which images are damaged, as far as this worker knows; safe to ask from threads.

    Args:
        order: of the images.
        records: all images, by number.
        max_share: of them; more damaged ones are an error.
    """

    def __init__(self, order: Order, *, records: Sequence[ImageRecord], max_share: float) -> None:
        self.order = order
        self.ids = [record.image_id for record in records]
        # 0.29 of 100 is a little less than 29 in binary
        self.allowed = int(round(max_share * len(records), 6))
        self.damaged: set[int] = set()
        self._lock = threading.Lock()

    def known(self) -> frozenset[int]:
        """All that are damaged, as far as this worker knows."""
        with self._lock:
            return frozenset(self.damaged)

    def of(
        self,
        images: Sequence[int],
        *,
        step: int,
        turns: Sequence[int] = (),
        unreadable: Set[int] = frozenset(),
    ) -> Found:
        """Those that stand in for `images` in `step`.

        Passed over are those that are `unreadable`, and at least `turns` of each.
        """
        found: list[int] = []
        passed: list[int] = []
        taken: list[int] = []
        for image, least in zip(images, turns or [0] * len(images), strict=True):
            for turn in count():
                candidate = self._candidate(step, image, turn)
                if turn >= least and candidate not in unreadable:
                    break
                passed.append(candidate)
            found.append(candidate)
            taken.append(turn)
        return Found(images=found, turns=tuple(taken), damaged=tuple(passed))

    def _candidate(self, step: int, image: int, turn: int) -> int:
        if turn == 0:
            return image
        if turn > self.allowed:
            raise self._too_many(turn)
        return int(self.order.substitutes(step, image)[turn - 1])

    def found(self, error: DamagedError) -> int:
        """The number of an image that turned out to be damaged."""
        image = self.ids.index(error.image_id)
        self.add([image])
        return image

    def add(self, images: Iterable[int]) -> None:
        """These are damaged; MachineFault when they are too many."""
        with self._lock:
            self.damaged.update(images)
        if len(self.damaged) > self.allowed:
            raise self._too_many(len(self.damaged))

    def _too_many(self, number: int) -> MachineFault:
        some = [repr(self.ids[image]) for image in sorted(self.damaged)[:3]]
        named = ", ".join(some + ["..."] * (number > len(some)))
        return MachineFault(
            f"{number} of {len(self.ids)} images cannot be read ({named}), and "
            f"batch.max_damaged_share allows {self.allowed}: preprocess them again, or allow more"
        )
