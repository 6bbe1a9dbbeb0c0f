"""Operations that give the same bits every time, or none at all.

The order of a training, its chance and its sums over workers are the same every time anyway, on
the CPU bit by bit. On a GPU some of torch's operations add up in whatever order threads come:
"deterministic" takes slower ones in their place and refuses a model that needs one without.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Algorithms = Literal["any", "deterministic"]
REFUSED = "does not have a deterministic implementation"


def _any() -> None:
    torch.use_deterministic_algorithms(False)


def _deterministic() -> None:
    # cuBLAS reads it when it is first used: two buffers of 4 MiB, eight of 16 KiB
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # else torch fills all new memory, which nobody reads before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


ALGORITHMS: dict[str, Callable[[], None]] = {"any": _any, "deterministic": _deterministic}


@contextmanager
def computing_by(algorithms: Algorithms) -> Iterator[None]:
    """Inside, this process computes so; what cannot is refused by its name."""
    ALGORITHMS[algorithms]()
    try:
        yield
    except RuntimeError as error:
        if REFUSED not in str(error):
            raise
        operation = str(error).partition(REFUSED)[0].strip()
        raise ValueError(
            f"engine.algorithms 'deterministic': torch's {operation} {REFUSED} on this device: "
            "take engine.algorithms=any, or a model without it"
        ) from error
    finally:
        _any()
