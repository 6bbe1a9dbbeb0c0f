"""Which image is seen when, and by whom: pure functions over integers, from the step number alone.

    epoch, place = divmod(step, steps_per_epoch)
    global batch = balanced(permutation(digest, seed, epoch))[place B : (place + 1) B]
    shares       = deal(groups of the global batch's images, a bin a worker and micro-step)

Neither the number of workers nor a restart enters the global batch. Every image comes exactly once
an epoch; the last batch of an epoch is smaller where B does not divide the images. The order of an
epoch is drawn once and kept for its steps, each of which is then found in constant time.
"""

import hashlib
import heapq
from collections.abc import Sequence
from functools import lru_cache

import numpy as np


class Order:
    """The global batches of all epochs; safe to ask from several threads.

    Args:
        digest: of the dataset.
        seed: of the user.
        groups: of every image, how many are stored.
        batch_images: B, images of a global batch.
        balance_steps: batches of the permuted order within which images of like size meet; 1 leaves
            the permuted order as it is.
    """

    def __init__(
        self,
        *,
        digest: str,
        seed: int,
        groups: Sequence[int],
        batch_images: int,
        balance_steps: int = 1,
    ) -> None:
        self.digest = digest
        self.seed = seed
        self.groups = np.asarray(groups, np.int64)
        self.batch_images = batch_images
        self.balance_steps = balance_steps
        self.steps_per_epoch = steps_per_epoch(len(self.groups), batch_images=batch_images)
        # a reader ahead of its trainer is in the next epoch already
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def batch(self, step: int) -> np.ndarray:
        """The images of global step `step`, counted from 0 over all epochs."""
        epoch, place = self._place(step)
        return self.epoch(epoch)[place * self.batch_images : (place + 1) * self.batch_images]

    def substitutes(self, step: int, image: int) -> np.ndarray:
        """Who stands in for `image` in `step` if it cannot be read, the first choice first.

        All others, in the order of the epoch after this step and round to it again; images of more
        groups come last, the smallest of them first: a stand-in takes no more memory if it can.
        """
        epoch, place = self._place(step)
        others = np.roll(self.epoch(epoch), -(place + 1) * self.batch_images)
        others = others[others != image]
        larger = self.groups[others] > self.groups[image]
        return others[np.argsort(np.where(larger, self.groups[others], 0), kind="stable")]

    def _place(self, step: int) -> tuple[int, int]:
        if step < 0:
            raise ValueError(f"step {step} is negative: steps count from 0")
        return divmod(step, self.steps_per_epoch)

    def _epoch(self, epoch: int) -> np.ndarray:
        permutation = epoch_permutation(
            digest=self.digest, seed=self.seed, epoch=epoch, num_images=len(self.groups)
        )
        order = balanced(
            permutation,
            groups=self.groups,
            batch_images=self.batch_images,
            balance_steps=self.balance_steps,
        )
        order.setflags(write=False)
        return order


def steps_per_epoch(num_images: int, *, batch_images: int) -> int:
    """How many global steps see every image once."""
    if num_images < 1 or batch_images < 1:
        raise ValueError(
            f"{num_images} image(s) in batches of {batch_images}: both must be positive"
        )
    return -(-num_images // batch_images)


def epoch_permutation(*, digest: str, seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order of an epoch: images sorted by a random 64-bit key each.

    Keys are Philox's raw stream, which NumPy keeps the same between versions (a Generator's
    shuffle it does not).
    """
    name = f"{digest}:{seed}:{epoch}".encode()
    key = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8")
    keys = np.random.Philox(key=key.astype(np.uint64)).random_raw(num_images)
    return np.argsort(np.asarray(keys), kind="stable")


def balanced(
    permutation: np.ndarray, *, groups: np.ndarray, batch_images: int, balance_steps: int
) -> np.ndarray:
    """The permuted images with those of like size in one batch, where they are near each other.

    In every window of `balance_steps` batches images are sorted by size, the largest first, and cut
    into batches again; these follow each other as their earliest images did. What is left over at
    the end of an epoch stays its last, smaller batch: chance alone decides who weighs more there.
    Images of equal size stay as they are. A window is a quarter of an epoch at most, or the same
    images would meet in every epoch.
    """
    whole = len(permutation) // batch_images * batch_images
    place = np.arange(whole)
    steps = max(1, min(balance_steps, whole // batch_images // 4))
    window = place // (batch_images * steps)
    by_size = np.lexsort((place, -groups[permutation[:whole]], window))
    batches = np.sort(by_size.reshape(-1, batch_images), axis=1)
    batches = batches[np.argsort(batches[:, 0], kind="stable")]
    return np.concatenate([permutation[batches.reshape(-1)], permutation[whole:]])


def deal(groups: Sequence[int], *, num_workers: int, num_parts: int) -> list[list[list[int]]]:
    """Images of a batch to workers and micro-steps, so that all have like numbers of groups.

    The largest first, each to whoever has least (LPT: no more than 4/3 - 1/(3 bins) of the best
    there is; Graham 1969, SIAM J. Appl. Math. 17). Micro-steps then take neighbours in load, and
    a worker that has least so far takes the largest.

    Returns:
        For every worker and micro-step the places of its images in the batch, rising. Where there
        are fewer images than workers and micro-steps, the last ones stay empty.
    """
    bins = [(0, number) for number in range(num_workers * num_parts)]
    held: list[list[int]] = [[] for _ in bins]
    for place in sorted(range(len(groups)), key=lambda place: (-groups[place], place)):
        load, number = heapq.heappop(bins)
        held[number].append(place)
        heapq.heappush(bins, (load + groups[place], number))
    bins.sort(key=lambda each: (-each[0], each[1]))
    shares: list[list[list[int]]] = [[] for _ in range(num_workers)]
    carried = [0] * num_workers
    for first in range(0, len(bins), num_workers):
        idle = sorted(range(num_workers), key=lambda worker: (carried[worker], worker))
        for worker, (load, number) in zip(idle, bins[first : first + num_workers], strict=True):
            shares[worker].append(sorted(held[number]))
            carried[worker] += load
    return shares
