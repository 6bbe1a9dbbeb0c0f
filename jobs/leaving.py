"""How the workers of a training leave before its last step: all after the same one, and saved."""

import signal
import threading
from typing import Any

import torch
import torch.distributed as dist
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2.api.callback import RayTrainCallback

STAYS = ""
STOPPED = "stopped"
RESIZED = "resized"
PREEMPTED = "preempted"
REASONS = (STAYS, RESIZED, PREEMPTED, STOPPED)
"""Where workers have several, the last of them counts."""

terminated = threading.Event()
"""This process got a SIGTERM: signals are the process's, so this is too."""


class HeedTermination(WorkerCallback, RayTrainCallback):
    """SIGTERM makes a worker save and leave with all others, where Ray would end it at once.

    Ray calls this in the main thread of a worker, where alone a handler can be set.
    """

    def after_init_train_context(self) -> None:
        """Before the training begins."""
        terminated.clear()
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(_signum: int, _frame: Any) -> None:
    terminated.set()


def agreed(reason: str, *, device: torch.device) -> str:
    """Why all workers leave now, or nothing; each tells its own reason, all are told the same."""
    code = torch.tensor(REASONS.index(reason), device=device)
    dist.all_reduce(code, op=dist.ReduceOp.MAX)
    return REASONS[int(code)]
