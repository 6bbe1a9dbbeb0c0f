"""Want of memory is met with fewer groups at once, which stays so."""

import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fit_model.bounded.config import BoundedConfig
from jobs.errors import MachineFault
from jobs.events import Event
from jobs.lessons import FILE, Lessons, read_lessons
from jobs.memory_limit import first_chunks
from jobs.smaller_chunks import OutOfMemory, SmallerChunks, memory_named, within_lessons
from jobs.targets import read_labelled
from jobs.train import model_config
from pipeline.dataset import open_dataset
from tests.jobs.small_training import train_config


@dataclass(frozen=True)
class Told:
    """As much of an assignment as is changed."""

    bounded: BoundedConfig | None


def raised(error: BaseException) -> BaseException:
    with pytest.raises(OutOfMemory) as found, memory_named(step=11, rank=1):
        raise error
    return found.value


FAULT = raised(MemoryError())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_want_of_memory_is_told_in_one_line_with_the_step_and_the_setting(error):
    found = raised(error)
    assert isinstance(found, MachineFault)
    assert str(found).startswith("worker 1 ran out of memory in step 12 (")
    assert "bounded.groups_a_chunk" in str(found)
    assert "\n" not in str(found)


def test_torch_cannot_have_this_much_and_says_so_as_expected():
    with pytest.raises(OutOfMemory), memory_named(step=0, rank=0):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_the_step_comes_along_from_worker_to_driver():
    there = pickle.loads(pickle.dumps(FAULT))
    assert (str(there), there.step) == (str(FAULT), 11)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="another"), memory_named(step=0, rank=0):
        raise RuntimeError("another")


def adapt(folder: Any, told: list[Event], begin: BoundedConfig | None = None) -> SmallerChunks:
    return SmallerChunks(folder=str(folder), begin=lambda: begin, tell=told.append)


def test_chunks_are_halved_down_to_one_group_and_no_further(tmp_path):
    told: list[Event] = []
    counts, task = [], Told(BoundedConfig(groups_a_chunk=6, offload="disk"))
    while task is not None:
        counts.append(task.bounded.groups_a_chunk)
        task = adapt(tmp_path, told)(FAULT, task)
    assert counts == [6, 3, 1]
    assert [dict(each.facts) for each in told] == [{"from": 6, "to": 3}, {"from": 3, "to": 1}]
    assert {each.kind for each in told} == {"out of memory"}
    assert read_lessons(str(tmp_path)).bounded == BoundedConfig(groups_a_chunk=1, offload="disk")


def test_what_went_whole_begins_to_go_in_chunks(tmp_path):
    told: list[Event] = []
    first = BoundedConfig(groups_a_chunk=8)
    assert adapt(tmp_path, told, first)(FAULT, Told(None)) == Told(first)
    assert dict(told[0].facts) == {"from": None, "to": 8}
    assert adapt(tmp_path, told, None)(FAULT, Told(None)) is None


def test_other_failures_change_nothing(tmp_path):
    told: list[Event] = []
    assert adapt(tmp_path, told)(ConnectionError("gone"), Told(BoundedConfig())) is None
    assert told == []
    assert not (tmp_path / FILE).exists()


def test_the_first_chunks_of_a_training_are_smaller_than_its_images(tiny_dataset):
    config, dataset = train_config(tiny_dataset), open_dataset(tiny_dataset)
    model = model_config(config, dataset)
    records = read_labelled(dataset, model.head, split="train").records
    found = first_chunks(config, model, records)
    assert 1 <= found.groups_a_chunk < max(len(each.groups) for each in records)


@pytest.mark.parametrize(
    ("configured", "stage", "taken"),
    [
        (None, 2, BoundedConfig(groups_a_chunk=4)),
        (BoundedConfig(groups_a_chunk=9), 2, BoundedConfig(groups_a_chunk=4)),
        (BoundedConfig(groups_a_chunk=2), 2, BoundedConfig(groups_a_chunk=2)),
        (
            BoundedConfig(groups_a_chunk=8, offload="host"),
            0,
            BoundedConfig(groups_a_chunk=4, offload="host"),
        ),
        (None, 3, None),
    ],
)
def test_who_goes_on_may_take_less_than_was_learned_and_never_more(
    tmp_path, configured, stage, taken
):
    assert within_lessons(configured, str(tmp_path), zero_stage=stage) == configured
    Lessons(bounded=BoundedConfig(groups_a_chunk=4)).write(str(tmp_path))
    assert within_lessons(configured, str(tmp_path), zero_stage=stage) == taken


def test_lessons_are_kept_beside_each_other(tmp_path):
    lessons = Lessons(around=((3, 9), (20, 25)), bounded=BoundedConfig(groups_a_chunk=2))
    lessons.write(str(tmp_path))
    assert read_lessons(str(tmp_path)) == lessons
    assert read_lessons(str(tmp_path / "another")) == Lessons()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"around": 1, "bounded": null}', "{}", "[" * 100_000]
)
def test_a_damaged_file_of_lessons_is_named(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"guard\.json is damaged"):
        read_lessons(str(tmp_path))
