"""A few workers on this machine, processes of their own that talk over loopback; no Ray."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from pipeline.process_memory import keep_freed_blocks

Task = TypeVar("Task")
Found = TypeVar("Found")
BACKENDS = {"cpu": "gloo", "gpu": "nccl"}
GOODBYE_S = 10.0


def in_small_world(
    function: Callable[[Task, int], Found],
    task: Task,
    *,
    num_workers: int,
    threads: int,
    device: Literal["cpu", "gpu"] = "cpu",
) -> Found:
    """What the function gives to the first worker; each is called with the task and its rank.

    What goes wrong on a worker is raised here.
    """
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    world = (num_workers, free_port(), threads, device)
    workers = [
        context.Process(target=work, args=(function, task, rank, world, far), daemon=True)
        for rank in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    far.close()
    try:
        found = near.recv()
    except EOFError:
        raise MemoryError("the workers died: they may have had too little memory") from None
    finally:
        for worker in workers:
            worker.join(timeout=GOODBYE_S)
            worker.kill()
    if isinstance(found, Exception):
        raise found
    return found


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def work(
    function: Callable[[Any, int], Any],
    task: Any,
    rank: int,
    world: tuple[int, int, int, str],
    line: Connection,
) -> None:
    """One worker's life; the first says what it found, and any what went wrong."""
    num_workers, port, threads, device = world
    torch.set_num_threads(threads)
    keep_freed_blocks()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers)}
    try:
        dist.init_process_group(BACKENDS[device], rank=rank, world_size=num_workers)
        found = function(task, rank)
        if rank == 0:
            line.send(found)
        dist.destroy_process_group()
    except Exception as error:
        line.send(error)
