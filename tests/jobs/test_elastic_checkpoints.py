"""A checkpoint is the same state for any number of workers and any ZeRO stage, bit by bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.manifests import Progress
from jobs.small_world import in_small_world
from tests.jobs.small_engines import (
    ADAMW,
    MORE_STEPS,
    RATES,
    SAVED_AFTER,
    VARIANTS,
    WORKERS,
    Variant,
    checkpoints,
    dirty_empty,
    made,
    mean_loss,
    snapshot,
    stitched,
)

TARGETS = {
    **VARIANTS,
    "adamw 0": Variant(ADAMW, 0),
    "adamw 1": Variant(ADAMW, 1),
    "adamw bf16 3": Variant(ADAMW, 3, "bf16"),
}
LONGER = {"adamw 1": "adamw 2", "adamw 2": "adamw 2", "adamw 3": "adamw 3"}
"""Engines that go on, and what two workers had begun before."""
NEXT = {1: range(SAVED_AFTER, len(RATES)), 2: range(len(RATES), len(RATES) + MORE_STEPS)}


def sources(target: Variant) -> list[str]:
    """Checkpoints that an engine can take, of the next two stages: every cut, put together anew."""
    stages = [(target.stage + further) % 4 for further in (1, 2)]
    return [
        name
        for name, each in VARIANTS.items()
        if each.family == target.family and each.stage in stages
    ]


def elsewhere(folder: str, rank: int) -> dict[str, Any]:
    """Take checkpoints into engines of other kinds, save them again, and go on with some."""
    torch.empty = dirty_empty
    found: dict[str, Any] = {}
    world_size = torch.distributed.get_world_size()
    for name, target in TARGETS.items():
        engine = made(target, seed=3)
        for source in sources(target):
            hand, told = checkpoints(f"{folder}/{source}", target)
            progress = hand.restore(engine)
            again = f"{folder}/again/{world_size}/{source} in {name}"
            checkpoints(again, target)[0].save(engine, progress, wait=True)
            found[f"{source} in {name}"] = snapshot(engine), told
        if name in LONGER:
            found[name] = next_losses(engine, folder, name, world_size)
    return found


def next_losses(engine: Any, folder: str, name: str, world_size: int) -> list[float]:
    """The next losses of a training that so many other workers have left."""
    longer, _ = checkpoints(f"{folder}/longer/{name}", TARGETS[name])
    begun, _ = checkpoints(f"{folder}/{LONGER[name]}", TARGETS[name])
    progress = (begun if world_size == 1 else longer).restore(engine)
    assert progress.step == NEXT[world_size].start
    losses = [mean_loss(engine, step) for step in NEXT[world_size]]
    longer.save(engine, Progress(step=NEXT[world_size].stop), wait=True)
    return losses


@pytest.fixture(scope="module")
def moved(sharded) -> dict[int, dict[str, Any]]:
    """By the number of workers, one after the other."""
    return {
        num_workers: in_small_world(
            elsewhere, str(sharded.folder), num_workers=num_workers, threads=1
        )
        for num_workers in (1, WORKERS)
    }


PAIRS = [(source, name) for name, target in TARGETS.items() for source in sources(target)]


@pytest.mark.parametrize("num_workers", [1, WORKERS])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_weights_averages_and_outputs_are_those_that_were_saved(
    moved, sharded, source, target, num_workers
):
    found, told = moved[num_workers][f"{source} in {target}"]
    saved = sharded.found[source]["saved"]
    assert found.keys() == saved.keys()
    for name, each in saved.items():
        np.testing.assert_array_equal(found[name], each, err_msg=name)
    assert told == []


@pytest.mark.parametrize("num_workers", [1, WORKERS])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_moments_and_the_count_of_steps_are_those_that_were_saved(
    moved, sharded, source, target, num_workers
):
    before = sharded.folder / source / "step-0000002"
    after = sharded.folder / "again" / str(num_workers) / f"{source} in {target}" / "step-0000002"
    expected, found = stitched(before), stitched(after)
    assert {name.partition("/")[0] for name in expected} == {
        "weight", "exp_avg", "exp_avg_sq", "ema", "buffer"
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        np.testing.assert_array_equal(found[name], each, err_msg=name)
    manifests = [json.loads((each / "manifest.json").read_text()) for each in (before, after)]
    assert [each["optimizer_steps"] for each in manifests] == [2, 2]
    assert [each["world_size"] for each in manifests] == [WORKERS, num_workers]


@pytest.mark.parametrize("source", VARIANTS)
def test_the_files_hold_the_averages_that_the_engine_gives(sharded, source):
    held = stitched(sharded.folder / source / "step-0000002")
    saved = sharded.found[source]["saved"]
    for kind, which in (("weight", "latest"), ("ema", "averaged")):
        names = [name for name in held if name.startswith(f"{kind}/")]
        assert names
        for name in names:
            expected = saved[f"{which} {name.partition('/')[2]}"]
            np.testing.assert_array_equal(held[name], expected.reshape(-1))


@pytest.mark.parametrize("name", LONGER)
def test_losses_over_two_one_and_two_workers_are_those_of_an_undisturbed_run(moved, sharded, name):
    found = moved[1][name] + moved[2][name]
    assert found == pytest.approx(sharded.found[LONGER[name]]["losses"], rel=1e-5)


def test_every_element_is_written_once(sharded: Any) -> None:
    for name in VARIANTS:
        folder: Path = sharded.folder / name / "step-0000002"
        bytes_a_worker = [path.stat().st_size for path in folder.glob("part-*")]
        assert len(bytes_a_worker) == WORKERS
        elements = sum(each.size for key, each in stitched(folder).items())
        # headers beside the tensors
        assert sum(bytes_a_worker) < 4 * elements + WORKERS * 5000
        assert min(bytes_a_worker) > 0.3 * max(bytes_a_worker)
