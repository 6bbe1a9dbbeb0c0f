"""Which image is seen when: pure functions over integers, from the step number alone.

    epoch, place = divmod(step, steps_per_epoch)
    global batch = permutation(digest, seed, epoch)[place B : (place + 1) B]
    worker's share = global batch[rank :: num_workers]

Neither the number of workers nor a restart enters the global batch. Every image comes exactly once
an epoch; the last batch of an epoch is smaller where B does not divide the images. A step is found
in constant time; the order of its epoch is drawn and sorted once and kept for the epoch's steps.
"""

import hashlib
from functools import lru_cache

import numpy as np


def steps_per_epoch(num_images: int, *, batch_images: int) -> int:
    """How many global steps see every image once."""
    if num_images < 1 or batch_images < 1:
        raise ValueError(
            f"{num_images} image(s) in batches of {batch_images}: both must be positive"
        )
    return -(-num_images // batch_images)


@lru_cache(maxsize=4)  # a reader ahead of its trainer is in the next epoch already
def epoch_permutation(*, digest: str, seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The order of an epoch, read-only: images sorted by a random 64-bit key each.

    Keys are Philox's raw stream, which NumPy keeps the same between versions (a Generator's
    shuffle it does not).
    """
    name = f"{digest}:{seed}:{epoch}".encode()
    key = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8")
    keys = np.random.Philox(key=key.astype(np.uint64)).random_raw(num_images)
    order = np.argsort(np.asarray(keys), kind="stable")
    order.setflags(write=False)
    return order


def global_batch(
    step: int, *, digest: str, seed: int, num_images: int, batch_images: int
) -> np.ndarray:
    """The images of global step `step`, counted from 0 over all epochs."""
    if step < 0:
        raise ValueError(f"step {step} is negative: steps count from 0")
    epoch, place = divmod(step, steps_per_epoch(num_images, batch_images=batch_images))
    order = epoch_permutation(digest=digest, seed=seed, epoch=epoch, num_images=num_images)
    return order[place * batch_images : (place + 1) * batch_images]


def worker_share(batch: np.ndarray, *, rank: int, num_workers: int) -> np.ndarray:
    """What one of the workers takes of a batch; shares differ by at most one image."""
    if not 0 <= rank < num_workers:
        raise ValueError(f"rank {rank} lies outside 0 to {num_workers - 1}")
    return batch[rank::num_workers]
