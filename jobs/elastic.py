"""Ray Train's elastic scaling for this training: counts that can be dealt, and nothing is lost.

start     as many workers as there is room for, of those counts that the settings can deal
a loss    the next attempt starts with what is left
room      the workers save, leave, and more of them go on
"""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import ScalingConfig

from jobs.assignment import Assignment
from jobs.leaving import RESIZED

SETTLING_S = 10.0
"""Workers that have just gone leave room a little later."""
POLL_S = 0.2


def dealable(assignment: Assignment, *, fewest: int, most: int) -> list[int]:
    """Numbers of workers that can share the steps of a training."""
    batch, groups = assignment.batch, assignment.parallel.groups
    return [
        count
        for count in range(fewest, most + 1)
        if count % groups == 0 and count // groups * batch.accumulation <= batch.images_per_step
    ]


class Dealing(ElasticScalingPolicy):
    """Ray's policy, asked within limits.

    Ray counts what the cluster's nodes have, also where somebody else uses it; and it would end
    workers to start more of them, and with them the steps since their last checkpoint.
    """

    def __init__(self, config: ScalingConfig, *, counts: Sequence[int], inbox: Any) -> None:
        super().__init__(config)
        self.counts = counts
        self.inbox = inbox
        self.running = 0
        self.asked_s = float("inf")

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """How many to start; none before it is clear how much room there is."""
        self.running, now_s = 0, time.monotonic()
        self.asked_s = min(self.asked_s, now_s)
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision) and (
            decision.num_workers == self.counts[-1] or now_s - self.asked_s > SETTLING_S
        ):
            return decision
        time.sleep(POLL_S)
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Never a resize: the workers are asked to leave, and the next attempt has more."""
        self.running = worker_group_state.num_workers
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if isinstance(decision, ResizeDecision) and decision.num_workers > self.running:
            self.inbox.leave.remote(RESIZED)
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = min(super()._count_possible_workers(reserved_resources), self.running + self._free())
        return max((count for count in self.counts if count <= room), default=0)

    def _free(self) -> int:
        needed = self.scaling_config._resources_per_worker_not_none
        nodes = ray._private.state.available_resources_per_node().values()
        return sum(
            min(int(node.get(name, 0.0) // amount) for name, amount in needed.items() if amount)
            for node in nodes
        )
