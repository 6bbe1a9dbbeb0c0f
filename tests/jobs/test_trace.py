"""A trace has every step once, with the images of all workers and the exact loss."""

import math

import pytest
import torch

from jobs.inbox import StepRecord
from jobs.small_world import in_small_world
from jobs.trace import Trace, TracedStep, images_read, read_trace

IDS = ("e", "d", "c", "b", "a")


def record(step: int, *, loss: float = 0.1, images: tuple[str, ...] = ("a",)) -> StepRecord:
    return StepRecord(step=step, metrics={"loss": loss}, images=images)


def put(folder: str, *steps: int) -> None:
    """What a driver does that gets these steps."""
    Trace(folder).keep([record(step) for step in steps])


def test_steps_that_come_again_after_a_restart_stand_there_once(tmp_path):
    put(str(tmp_path), 1, 2, 3)
    put(str(tmp_path), 2, 3, 4)
    assert [each.step for each in read_trace(str(tmp_path))] == [1, 2, 3, 4]


@pytest.mark.parametrize("loss", [0.1 + 0.2, 1e-310, math.inf, -0.0])
def test_a_loss_comes_back_bit_by_bit(tmp_path, loss):
    Trace(str(tmp_path)).keep([record(1, loss=loss, images=("b", "a", "b"))])
    assert read_trace(str(tmp_path)) == [TracedStep(step=1, loss=loss, images=("a", "b", "b"))]
    assert math.copysign(1.0, read_trace(str(tmp_path))[0].loss) == math.copysign(1.0, loss)


def test_a_training_without_a_trace_has_no_steps(tmp_path):
    assert read_trace(str(tmp_path)) == []


def test_nothing_is_written_where_nothing_is_new(tmp_path):
    put(str(tmp_path), 1)
    before = (tmp_path / "trace.jsonl").stat().st_ino
    put(str(tmp_path), 1)
    assert (tmp_path / "trace.jsonl").stat().st_ino == before


def told(sharing: int, rank: int) -> list[str]:
    """The first worker reads 0, 4 and 4, the second 2 and 4; or both hold 0, 4 and 4 together."""
    numbers = [0, 4, 4] if rank == 0 or sharing == 2 else [2, 4]
    return images_read(numbers, IDS, sharing=sharing, device=torch.device("cpu"))


@pytest.mark.parametrize(("sharing", "seen"), [(1, list("aaace")), (2, list("aae"))])
def test_the_images_of_all_workers_are_told_as_often_as_they_were_read(sharing, seen):
    assert in_small_world(told, sharing, num_workers=2, threads=1) == seen
