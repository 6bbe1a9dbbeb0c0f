"""One worker's file of a checkpoint: pieces of parameters as safetensors, written as they come.

    weight/NAME@START        fp32, the elements of parameter NAME from START on
    exp_avg/NAME@START       what the optimizer keeps of them
    buffer/NAME@0            in a dtype of its own, in the first worker's file only

All are flat, row by row.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from pipeline.storage import Location

BUFFER = "buffer"
MAX_HEADER_BYTES = 100_000_000
"""As the format has it."""
MAX_ELEMENTS = 2**48
PREFIX_BYTES = 8
READ_BYTES = 16 << 20
"""At a time, for a checksum."""
DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Largest first: in this order every tensor begins where its dtype may."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """The name of a tensor in a file."""

    kind: str
    name: str
    start: int = 0

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}@{self.start}"

    @staticmethod
    def of(text: str) -> "Key":
        """From a file; ValueError where it is none of ours."""
        kind, slash, rest = text.partition("/")
        name, at, start = rest.rpartition("@")
        if not (slash and at and name and start.isdecimal()):
            raise ValueError(f"{text!r} names no piece of a parameter")
        return Key(kind=kind, name=name, start=int(start))


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a manifest says of a file."""

    bytes: int
    blake3: str


def write_part(file: Path, tensors: Mapping[Key, Tensor]) -> Written:
    """Write a file, and give its checksum without reading it again.

    Memory: one tensor, where it is not on the CPU yet. Raises OSError as the disk does.
    """
    order = list(DTYPES.values())
    rows = sorted(tensors.items(), key=lambda row: order.index(DTYPES[row[1].dtype]))
    summed, size = blake3(), 0
    with file.open("wb") as target:
        for content in itertools.chain([_header(rows)], (_content(each) for _, each in rows)):
            summed.update(content)
            size += target.write(content)
        target.flush()
        os.fsync(target.fileno())
    return Written(bytes=size, blake3=summed.hexdigest())


def _header(rows: Sequence[tuple[Key, Tensor]]) -> bytes:
    """The length of what follows, and for each tensor its dtype, shape and place behind that."""
    entries: dict[str, Any] = {}
    end = 0
    for key, tensor in rows:
        begin, end = end, end + tensor.numel() * tensor.itemsize
        entries[str(key)] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": [tensor.numel()],
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % PREFIX_BYTES)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def _content(tensor: Tensor) -> Any:
    """Its bytes, as something that files and checksums take; a copy only of what is on a GPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def read_header(place: Location) -> dict[Key, int]:
    """The pieces in a file, and how many elements each has; ValueError where it is no such file."""
    prefix = place.read_range(0, PREFIX_BYTES)
    size = int.from_bytes(prefix, "little")
    if len(prefix) < PREFIX_BYTES or size > MAX_HEADER_BYTES:
        raise ValueError("begins with no header")
    text = place.read_range(PREFIX_BYTES, size)
    try:
        entries = json.loads(text)
        return {key: _numel(key, entry) for key, entry in _by_key(entries)}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"has a header that cannot be read ({error})") from error


def _by_key(entries: dict[str, Any]) -> Iterator[tuple[Key, Any]]:
    return ((Key.of(name), entry) for name, entry in entries.items())


def _numel(key: Key, entry: Mapping[str, Any]) -> int:
    (numel,) = entry["shape"]
    if not isinstance(numel, int) or not 0 <= numel < MAX_ELEMENTS:
        raise ValueError(f"{key} has {numel!r} elements")
    if key.kind != BUFFER and entry["dtype"] != DTYPES[torch.float32]:
        raise ValueError(f"{key} is {entry['dtype']}")
    return numel


def checksum(file: Path) -> str:
    """BLAKE3 of a file's bytes."""
    summed = blake3()
    with file.open("rb") as source:
        while content := source.read(READ_BYTES):
            summed.update(content)
    return summed.hexdigest()
