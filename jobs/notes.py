"""What workers tell each other in words: small JSON values, never pickle.

Every worker calls these functions at the same point of its program, and what goes wrong on one is
raised on all of them alike: none is left waiting.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.errors import MachineFault, UserError

ERRORS: dict[str, type[Exception]] = {"UserError": UserError, "MachineFault": MachineFault}


def found_by_first(work: Callable[[], Any], *, device: torch.device) -> Any:
    """What the first worker finds; the others do nothing for it."""
    note = _attempt(work) if dist.get_rank() == 0 else None
    return _opened(from_first(note, device=device))


def found_by_all(work: Callable[[], Any], *, device: torch.device) -> list[Any]:
    """What every worker finds, by rank."""
    return [_opened(note) for note in from_everyone(_attempt(work), device=device)]


def _attempt(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"found": work()}
    except UserError as error:
        return {"kind": "UserError", "text": str(error)}
    except (OSError, MachineFault) as error:
        return {"kind": "MachineFault", "text": str(error)}


def _opened(note: dict[str, Any]) -> Any:
    if "kind" in note:
        raise ERRORS[note["kind"]](note["text"])
    return note["found"]


def from_everyone(note: Any, *, device: torch.device) -> list[Any]:
    """Every worker's note, by rank."""
    mine = _packed(note, device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, _size(mine))
    longest = int(torch.stack(sizes).max())
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine
    notes = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(notes, padded)
    return [_unpacked(each[: int(size)]) for each, size in zip(notes, sizes, strict=True)]


def from_first(note: Any, *, device: torch.device) -> Any:
    """What the first worker says, to all; the others' notes do not count."""
    first = dist.get_rank() == 0
    mine = _packed(note if first else None, device)
    size = _size(mine)
    dist.broadcast(size, src=0)
    heard = mine if first else torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(heard, src=0)
    return _unpacked(heard)


def all_agree(yes: bool, *, device: torch.device) -> bool:
    """Whether every worker says yes; the cheapest question there is."""
    answer = torch.tensor([int(yes)], dtype=torch.int32, device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return bool(answer.item())


def _packed(note: Any, device: torch.device) -> Tensor:
    content = bytearray(json.dumps(note).encode())
    return torch.frombuffer(content, dtype=torch.uint8).to(device)


def _unpacked(note: Tensor) -> Any:
    return json.loads(note.cpu().numpy().tobytes())


def _size(note: Tensor) -> Tensor:
    return torch.tensor([len(note)], dtype=torch.int64, device=note.device)
