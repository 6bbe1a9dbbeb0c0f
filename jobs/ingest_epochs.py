"""One epoch of patch groups, whoever reads it: what is delivered, how it is touched and counted."""

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

WORD = np.uint64


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a system reads, and with how many hands."""

    dataset: str
    """Of patch groups, as `farreach preprocess` stores them."""
    copy: str
    """The same groups in the system's own format: a folder or s3://bucket/prefix."""
    scratch: str
    """A local folder for caches, empty where an epoch is read."""
    workers: int = 1
    """Threads or processes that read; what they read is used in one more."""
    batch_groups: int = 1
    range_groups: int = 1
    """Groups in one range of bytes, where shards are read; of one image and shard."""
    endpoint: str = ""
    """URL of an S3 endpoint; empty for local files."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Some groups in the memory of the process that would train on them."""

    images: Sequence[str]
    groups: Sequence[int]
    pixels: np.ndarray | Sequence[np.ndarray]
    """[group, ...]; each group's bytes are contiguous."""
    crc32s: Sequence[int] | None = None
    """As stored; None where a system reads bytes and nothing else."""


Epoch = Callable[[int], Iterator[Delivery]]
"""From the number of an epoch to its batches."""


@dataclass(kw_only=True)
class Tally:
    """What arrived, in any order: equal groups give equal tallies."""

    num_bytes: int = 0
    sum: int = 0
    """Of all pixels as 64-bit words, modulo 2^64."""
    names: list[tuple[str, int]] = field(default_factory=list)
    checksums: list[tuple[str, int, int]] = field(default_factory=list)
    """Image, group, CRC-32 of the pixels that arrived; empty where none was asked for."""

    def touch(self, delivery: Delivery) -> None:
        """Read every byte once, the cheapest way there is."""
        pixels = delivery.pixels
        for block in (pixels,) if isinstance(pixels, np.ndarray) else pixels:
            words = block.reshape(len(block), -1).view(WORD)
            self.sum = (self.sum + int(np.add.reduce(words, axis=None))) % 2**64
            self.num_bytes += words.nbytes
        self.names.extend(zip(delivery.images, delivery.groups, strict=True))

    def check(self, delivery: Delivery) -> None:
        """Compute every group's checksum, and hold it against what came with it."""
        found = [zlib.crc32(np.ascontiguousarray(group).data) for group in delivery.pixels]
        if delivery.crc32s is not None and list(delivery.crc32s) != found:
            raise ValueError("groups arrived with checksums of others")
        self.checksums.extend(zip(delivery.images, delivery.groups, found, strict=True))

    def summary(self) -> dict[str, int | str]:
        """As few values; two are equal where the same groups arrived as often."""
        found: dict[str, int | str] = {
            "num_groups": len(self.names),
            "num_bytes": self.num_bytes,
            "sum": self.sum,
            "names": digest_of(self.names),
        }
        return found | ({"checksums": digest_of(self.checksums)} if self.checksums else {})


def digest_of(rows: Sequence[tuple[str | int, ...]]) -> str:
    """sha256 over rows in the order of their values."""
    lines = (" ".join(map(str, row)) + "\n" for row in sorted(rows))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Timed:
    """An epoch: how long from asking for it to its last group, and what arrived."""

    seconds: float
    arrived: dict[str, int | str]


OTHERWISE = {
    "names": "groups twice or others than are stored",
    "sum": "other pixels than are stored",
    "checksums": "pixels of other groups than it said",
}
"""What it means where a value of two tallies differs, and none before it."""


def differs(found: Timed, stored: dict[str, int | str]) -> str:
    """How what arrived differs from the tally of what is stored; empty where it does not."""
    arrived = found.arrived
    if arrived["num_groups"] != stored["num_groups"]:
        return f"delivered {arrived['num_groups']:,} of {stored['num_groups']:,} groups"
    for name, said in OTHERWISE.items():
        if arrived.get(name, stored[name]) != stored[name]:
            return f"delivered {said}"
    return ""


def timed(epoch: Epoch, number: int, *, check: bool = False) -> Timed:
    """Run through an epoch; with `check` checksums are computed too, which takes its time."""
    tally = Tally()
    start = time.perf_counter()
    for delivery in epoch(number):
        tally.touch(delivery)
        if check:
            tally.check(delivery)
    seconds = time.perf_counter() - start
    return Timed(seconds=seconds, arrived=tally.summary())
