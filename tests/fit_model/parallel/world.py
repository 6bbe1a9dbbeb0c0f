"""Worker processes that stay and are sent work: starting them costs seconds."""

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class World:
    """So many workers in one process group, each waiting for a function to call."""

    def __init__(self, num_workers: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.fit_model.parallel.work"])
        self.pipes, self.workers = [], []
        for rank in range(num_workers):
            here, there = context.Pipe()
            args = (there, rank, num_workers, str(folder / "meeting"))
            worker = context.Process(target=serve, args=args, daemon=True)
            worker.start()
            self.pipes.append(here)
            self.workers.append(worker)

    def call(self, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """What every worker's call gives; an exception comes back as its text."""
        self.send(function, *args)
        return [self.answer(rank, timeout_s=timeout_s) for rank in range(len(self.pipes))]

    def send(self, function: Callable[..., Any], *args: Any) -> None:
        """Let every worker begin."""
        for pipe in self.pipes:
            pipe.send((function, args))

    def answer(self, rank: int, *, timeout_s: float) -> Any:
        """What one worker gives; None when it is dead."""
        if not self.pipes[rank].poll(timeout_s):
            raise TimeoutError(f"worker {rank} gives no answer")
        try:
            return self.pipes[rank].recv()
        except EOFError:
            return None

    def close(self) -> None:
        """End the workers."""
        for pipe in self.pipes:
            pipe.close()
        for worker in self.workers:
            worker.kill()
            worker.join()


def serve(pipe: Connection, rank: int, num_workers: int, meeting: str) -> None:
    """The life of a worker."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=num_workers,
        timeout=timedelta(seconds=120),
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = function(*args)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
            if not isinstance(error, ValueError | ConnectionError):
                answer += traceback.format_exc()
        pipe.send(answer)
