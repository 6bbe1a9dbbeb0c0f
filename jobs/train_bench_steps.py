"""What a checkpoint costs a training, and its guard: the same steps with and without, in turns."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch.distributed as dist

from jobs.batches import Batch
from jobs.guarded import Outcome
from jobs.worker import Loop, looping

WARM_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How often what is compared takes turns."""

    rounds: int
    """With and without a checkpoint."""
    block_steps: int
    """Of a round: a checkpoint is begun after the first, and written while the others are made."""
    pairs: int
    """Of steps with and without the guard."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Seconds of the same work."""

    with_it: float
    without: float


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one worker measured; all end their blocks together."""

    first_step_at: float
    """When the first step was done, in seconds since 1970."""
    background: tuple[Pair, ...] = ()
    """Blocks with and without a checkpoint."""
    foreground: tuple[Pair, ...] = ()
    guard: tuple[Pair, ...] = ()
    """Steps with and without the guard."""


def begin(told: dict[str, Any]) -> Spent:
    """A few steps from the start and a checkpoint; called on every worker."""
    with looping(told["assignment"]) as loop:
        spent = warmed(loop)
        loop.save(loop.finished_steps + WARM_STEPS, wait=True)
    return spent


def measure(told: dict[str, Any]) -> Spent:
    """Go on from that checkpoint, and measure; called on every worker."""
    turns: Turns = told["turns"]
    with looping(told["assignment"]) as loop:
        spent = warmed(loop)
        return replace(
            spent,
            background=checkpoint_pairs(loop, turns, writing="background"),
            foreground=checkpoint_pairs(loop, turns, writing="foreground"),
            guard=guard_pairs(loop, turns),
        )


def warmed(loop: Loop) -> Spent:
    """A few steps that do not count."""
    batches = loop.batches()
    loop.step(loop.finished_steps, batches)
    spent = Spent(first_step_at=time.time())
    for number in range(1, WARM_STEPS):
        loop.step(loop.finished_steps + number, batches)
    return spent


def checkpoint_pairs(loop: Loop, turns: Turns, *, writing: Any) -> tuple[Pair, ...]:
    """Blocks with a checkpoint and the same ones without; which comes first takes turns."""
    loop.checkpoints.config = replace(loop.checkpoints.config, writing=writing)

    def block(batches: Sequence[Batch], *, saves: bool) -> None:
        for number, batch in enumerate(batches):
            one_step(loop, batch)
            if saves and number == 0:
                loop.save(loop.finished_steps, wait=False)
            loop.checkpoints.settle()

    return tuple(
        in_turn(
            number,
            partial(block, batches, saves=True),
            partial(block, batches, saves=False),
            loop=loop,
        )
        for number, batches in enumerate(blocks(loop, turns.rounds, size=turns.block_steps))
    )


def guard_pairs(loop: Loop, turns: Turns) -> tuple[Pair, ...]:
    """Steps under guard and the same ones without; which comes first takes turns."""

    def unguarded(batch: Batch) -> None:
        with no_guard(loop):
            one_step(loop, batch)

    return tuple(
        in_turn(number, partial(one_step, loop, batch), partial(unguarded, batch), loop=loop)
        for number, (batch,) in enumerate(blocks(loop, turns.pairs, size=1))
    )


@contextmanager
def no_guard(loop: Loop) -> Iterator[None]:
    """Every step is taken unseen."""

    def take(step: int, **_: Any) -> Outcome:
        loop.engine.step()
        return Outcome(figures={})

    guarded, loop.guarded.step = loop.guarded.step, take  # type: ignore[method-assign]
    try:
        yield
    finally:
        loop.guarded.step = guarded  # type: ignore[method-assign]


def one_step(loop: Loop, batch: Batch) -> None:
    """As in training, on a batch that others see, too; always the same step of the schedule."""
    loop.step(loop.finished_steps, iter([batch]))


def blocks(loop: Loop, count: int, *, size: int) -> Iterator[list[Batch]]:
    """So many times so many of the batches that come next."""
    batches = loop.batches()
    for _ in range(count):
        yield list(islice(batches, size))


def in_turn(
    number: int, with_it: Callable[[], None], without: Callable[[], None], *, loop: Loop
) -> Pair:
    """Seconds of both, until all workers are through."""
    if number % 2:
        late = seconds(without)
        pair = Pair(with_it=seconds(with_it), without=late)
    else:
        early = seconds(with_it)
        pair = Pair(with_it=early, without=seconds(without))
    loop.flush()
    return pair


def seconds(run: Callable[[], None]) -> float:
    """From when all workers begin until all are through."""
    dist.barrier()
    started_s = time.perf_counter()
    run()
    dist.barrier()
    return time.perf_counter() - started_s
