"""How many workers train: as many as there is room for, of those that can share the steps."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.config import ScalingConfig

from fit_model.parallel.config import ParallelConfig
from jobs import elastic
from jobs.batches import BatchConfig
from jobs.elastic import Dealing, dealable
from jobs.workers import WorkersConfig
from tests.jobs.small_training import train_config


def counts(fewest: int, most: int, *, groups: int = 1, images: int = 8, parts: int = 1) -> Any:
    assignment: Any = SimpleNamespace(
        parallel=ParallelConfig(groups=groups),
        batch=BatchConfig(images_per_step=images, accumulation=parts),
    )
    return dealable(assignment, fewest=fewest, most=most)


def test_counts_that_cannot_be_dealt_are_left_out():
    assert counts(1, 4) == [1, 2, 3, 4]
    assert counts(2, 6, groups=2) == [2, 4, 6]
    assert counts(1, 6, images=4) == [1, 2, 3, 4]
    assert counts(1, 6, images=4, parts=2) == [1, 2]
    assert counts(2, 9, images=4, parts=2, groups=2) == [2, 4]


@dataclass
class Call:
    said: list[str]

    def remote(self, why: str) -> None:
        self.said.append(why)


class Room(Dealing):
    """The policy on a cluster that a test makes."""

    reserved, free = 0, 0

    def _maybe_send_resource_request(self) -> None:
        """To nobody."""

    def _get_reserved_resources(self) -> Any:
        return {"node": {"CPU": float(self.reserved)}}

    def _free(self) -> int:
        return self.free


def policy(counts: list[int]) -> Room:
    config = ScalingConfig(num_workers=(counts[0], counts[-1]), resources_per_worker={"CPU": 1})
    said: list[str] = []
    return Room(config, counts=counts, inbox=SimpleNamespace(leave=Call(said), said=said))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(elastic, "POLL_S", 0.0)
    monkeypatch.setattr(elastic, "SETTLING_S", -1.0)


@pytest.mark.parametrize(
    ("reserved", "free", "started"), [(8, 8, 6), (8, 5, 4), (3, 8, 2), (8, 1, None)]
)
def test_as_many_start_as_fit_and_can_be_dealt(reserved, free, started):
    deciding = policy([2, 4, 6])
    deciding.reserved, deciding.free = reserved, free
    decision = deciding.make_decision_for_non_running_worker_group()
    if started is None:
        assert isinstance(decision, NoopDecision)
    else:
        assert isinstance(decision, ResizeDecision)
        assert decision.num_workers == started


def test_fewer_than_the_most_wait_for_the_room_that_others_are_leaving(monkeypatch):
    monkeypatch.setattr(elastic, "SETTLING_S", 60.0)
    deciding = policy([1, 2])
    deciding.reserved, deciding.free = 2, 1
    assert isinstance(deciding.make_decision_for_non_running_worker_group(), NoopDecision)
    deciding.free = 2
    assert isinstance(deciding.make_decision_for_non_running_worker_group(), ResizeDecision)


@pytest.mark.parametrize(("free", "said"), [(0, []), (1, []), (2, ["resized"])])
def test_workers_are_asked_to_leave_when_more_can_go_on(free, said):
    deciding = policy([2, 4])
    deciding.reserved, deciding.free = 4, free
    state = SimpleNamespace(num_workers=2, start_time=-1e9)
    decision = deciding.make_decision_for_running_worker_group(state, None)
    assert isinstance(decision, NoopDecision)
    assert deciding.inbox.said == said


@pytest.mark.parametrize(
    ("num_workers", "groups", "line"),
    [
        ((1, 4), 2, "workers.num_workers 1 is no multiple of parallel.groups 2"),
        ((2, 5), 2, "workers.num_workers 5 is no multiple of parallel.groups 2"),
        ((1, 16), 1, "leaves some of 16 workers"),
    ],
)
def test_limits_that_cannot_be_dealt_are_refused_beforehand(num_workers, groups, line):
    with pytest.raises(ValueError, match=line):
        replace(
            train_config("dataset"),
            workers=WorkersConfig(num_workers=num_workers),
            parallel=ParallelConfig(groups=groups),
        )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"num_workers": (2, 1)}, "write the smaller number first"),
        ({"num_workers": (0, 2)}, "must be at least 1"),
        ({"max_failures": -1}, "max_failures -1 must not be negative"),
        ({"hang_timeout_s": 0.0}, "hang_timeout_s 0 must be more than 0"),
    ],
)
def test_settings_of_workers_that_mean_nothing_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        WorkersConfig(**settings)
