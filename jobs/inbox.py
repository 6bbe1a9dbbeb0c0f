"""Where workers drop what they have to say, and find out when they are to leave."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.events import Event


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One training step as rank 0 measured it."""

    step: int
    metrics: Mapping[str, float]
    damaged: Sequence[str] = ()
    """Ids of images that cannot be read; others stood in for them."""
    images: Sequence[str] = ()
    """Ids of the images that all workers read, where they are traced."""
    events: Sequence[Event] = ()
    """What happened in this step."""
    time_ms: int = 0
    """When it was measured, since 1970: sent twice, it is the same point of the record."""


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """A worker's sign of life."""

    rank: int
    num_workers: int
    pid: int
    node_id: str
    """Ray's."""
    hostname: str
    step: int = 0
    """Finished steps."""
    at: str = "starting"
    """Starting, reading, computing, talking (to the other workers), saving, or done."""
    since_s: float = 0.0
    """How long it has been at that without getting anything done."""
    figures: Mapping[str, float] | None = None
    """Load of its node; one worker of a node measures it."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What an inbox hands over."""

    records: Sequence[StepRecord] = ()
    events: Sequence[Event] = ()
    pulses: Sequence[Pulse] = ()
    """The newest of every worker."""
    silent_s: Mapping[int, float]
    """By rank, how long ago the newest pulse came."""


@ray.remote(num_cpus=0)
class Inbox:
    """One attempt's; lives on the driver's node and dies with the driver."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.events: list[Event] = []
        self.pulses: dict[int, Pulse] = {}
        self.heard_s: dict[int, float] = {}
        self.order = ""

    def put(self, records: list[StepRecord]) -> None:
        """Take records from a worker."""
        self.records.extend(records)

    def tell(self, event: Event) -> None:
        """Take what happened beside a step."""
        self.events.append(event)

    def beat(self, pulse: Pulse) -> str:
        """Take a sign of life; gives why the workers are to save and leave, or nothing."""
        self.pulses[pulse.rank] = pulse
        self.heard_s[pulse.rank] = time.monotonic()
        return self.order

    def leave(self, why: str) -> None:
        """Ask all workers to save at the end of their step and to leave; the first reason stays."""
        self.order = self.order or why

    def drain(self) -> Delivery:
        """Hand over what came since the last call, and who was heard of when."""
        now_s = time.monotonic()
        delivery = Delivery(
            records=self.records,
            events=self.events,
            pulses=list(self.pulses.values()),
            silent_s={rank: now_s - heard_s for rank, heard_s in self.heard_s.items()},
        )
        self.records, self.events = [], []
        return delivery


def open_inbox() -> Any:
    """A handle of a new inbox on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Inbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
