"""A checkpoint is used when it is whole and ours, and passed over or refused with a line when not.

One small engine, one worker: what several of them do is in test_elastic_checkpoints.py.
"""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from jobs.checkpoint_folders import best, clear_leftovers, prune
from jobs.errors import MachineFault, UserError
from jobs.manifests import Manifest, PartEntry, Progress, read_manifest
from jobs.monitor import StepRecord
from jobs.parts import Key, checksum, write_part
from jobs.small_world import in_small_world
from jobs.standing import Standing
from pipeline.storage import Location
from tests.jobs.small_engines import (
    ADAMW,
    Small,
    Variant,
    checkpoints,
    made,
    stitched,
    train,
    weights,
)

VARIANT = Variant(ADAMW, 2)


def save_three(folder: str, rank: int) -> None:
    """Good checkpoints after steps 1, 2 and 3."""
    hand, _ = checkpoints(folder, VARIANT, keep_last=3)
    engine = made(VARIANT, seed=1)
    for step in (1, 2, 3):
        train(engine, range(step - 1, step))
        hand.save(engine, Progress(step=step), wait=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    in_small_world(save_three, str(folder), num_workers=1, threads=1)
    return folder


def part_of(folder: Path) -> Path:
    (part,) = (folder / "step-0000003").glob("part-*")
    return part


def truncate(folder: Path) -> None:
    part_of(folder).write_bytes(part_of(folder).read_bytes()[:-4])


def flip(folder: Path) -> None:
    content = bytearray(part_of(folder).read_bytes())
    content[-7] ^= 1
    part_of(folder).write_bytes(content)


def lose_a_part(folder: Path) -> None:
    part_of(folder).unlink()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], *, sign: bool = True) -> None:
    """The newest manifest with something changed, and signed as if it were ours."""
    place = folder / "step-0000003" / "manifest.json"
    told = json.loads(place.read_text())
    signed = told.pop("blake3")
    change(told)
    if sign:
        signed = blake3(json.dumps(told, sort_keys=True).encode()).hexdigest()
    place.write_text(json.dumps({"blake3": signed, **told}))


def lead_out(folder: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["parts"][0]["name"] = "../step-0000002/" + told["parts"][0]["name"]

    rewrite(folder, change)


def miss_a_piece(folder: Path) -> None:
    """A file whose checksum is right, and which lacks the end of a weight."""
    part = part_of(folder)
    tensors = load_file(part)
    tensors["weight/last.weight@0"] = tensors["weight/last.weight@0"][:-1].clone()
    save_file(tensors, part)

    def change(told: dict[str, Any]) -> None:
        told["parts"][0] |= {"bytes": part.stat().st_size, "blake3": checksum(part)}

    rewrite(folder, change)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated part": (truncate, "bytes long instead of"),
    "flipped byte": (flip, "has a wrong checksum"),
    "lost part": (lose_a_part, "is missing"),
    "manifest cut off": (
        lambda folder: (folder / "step-0000003" / "manifest.json").write_text('{"blake3": "'),
        "manifest.json cannot be read",
    ),
    "manifest changed": (
        lambda folder: rewrite(folder, lambda told: told.update(optimizer_steps=7), sign=False),
        "manifest.json has a wrong checksum",
    ),
    "path that leads out": (lead_out, "names a file '../step-0000002/part-"),
    "negative size": (
        lambda folder: rewrite(folder, lambda told: told["parts"][0].update(bytes=-1)),
        "has -1 bytes",
    ),
    "no list": (
        lambda folder: rewrite(folder, lambda told: told.update(parts=3)),
        "is no manifest",
    ),
    "piece missing": (miss_a_piece, "do not hold the 35 elements of weight last.weight"),
}


def restore_each(task: tuple[dict[str, str], Variant], rank: int) -> dict[str, Any]:
    folders, variant = task
    found = {}
    for name, folder in folders.items():
        engine = made(variant, seed=2)
        hand, told = checkpoints(folder, variant)
        try:
            progress = hand.restore(engine)
            found[name] = progress.step, weights(engine, "latest"), told
        except (MachineFault, UserError) as error:
            found[name] = type(error), str(error), told
    return found


@pytest.fixture(scope="module")
def restored(good, tmp_path_factory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("damaged")
    for name, (damage, _) in DAMAGES.items():
        shutil.copytree(good, root / name)
        damage(root / name)
    shutil.copytree(good, root / "no manifest")
    (root / "no manifest" / "step-0000003" / "manifest.json").unlink()
    shutil.copytree(good, root / "all damaged")
    for part in (root / "all damaged").glob("*/part-*"):
        part.write_bytes(b"")
    shutil.copytree(good, root / "newer version")
    rewrite(root / "newer version", lambda told: told.update(version=99))
    shutil.copytree(good, root / "other model")
    rewrite(root / "other model", lambda told: told["elements"].update({"table": 4}))
    folders = {path.name: str(path) for path in [*root.iterdir(), good, root / "nothing"]}
    return in_small_world(restore_each, (folders, VARIANT), num_workers=1, threads=1)


def step_of(good: Path, step: int) -> dict[str, np.ndarray]:
    held = stitched(good / f"step-{step:07d}")
    return {name: held[f"weight/{name}"] for name, _ in Small(seed=0).named_parameters()}


def assert_restored(found: tuple[int, dict[str, np.ndarray], Any], good: Path, step: int) -> None:
    assert found[0] == step
    for name, each in step_of(good, step).items():
        np.testing.assert_array_equal(found[1][name].reshape(-1), each)


def test_the_newest_good_checkpoint_is_used(restored, good):
    assert_restored(restored[good.name], good, 3)
    assert restored[good.name][2] == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(restored, good, damage):
    assert_restored(restored[damage], good, 2)
    (event,) = restored[damage][2]
    assert (event.kind, event.step) == ("checkpoint damaged", 3)
    assert DAMAGES[damage][1] in event.text
    assert f"{damage}/step-0000003" in event.text


def test_a_folder_without_a_manifest_is_no_checkpoint_and_nothing_to_tell(restored, good):
    assert_restored(restored["no manifest"], good, 2)
    assert restored["no manifest"][2] == []


def test_without_any_checkpoint_training_starts(restored):
    assert restored["nothing"][0] == 0
    assert restored["nothing"][2] == []


def test_where_all_are_damaged_training_does_not_start_anew_without_a_word(restored):
    kind, line, told = restored["all damaged"]
    assert kind is MachineFault
    assert "none of 3 checkpoints is good" in line
    assert [event.step for event in told] == [3, 2, 1]


def test_another_version_and_another_model_are_refused(restored):
    kind, line, _ = restored["newer version"]
    assert kind is UserError
    assert "has version 99, and this program reads 1" in line
    kind, line, _ = restored["other model"]
    assert kind is UserError
    assert "table has 4 elements there and 3 here" in line


def fail_in_the_middle(folder: str, rank: int) -> dict[str, Any]:
    """Saves of which one meets a full disk; then a rollback."""
    engine = made(VARIANT, seed=1)
    hand, told = checkpoints(folder, VARIANT, last_step=9)
    for step in (1, 2, 3):
        train(engine, range(step - 1, step))
        if step == 2:
            with full_disk():
                hand.save(engine, Progress(step=step), wait=True)
        else:
            hand.save(engine, Progress(step=step), wait=False)
    while hand._pending is not None:
        hand.settle()
    try:
        with full_disk():
            hand.save(engine, Progress(step=9), wait=True)
        last = ""
    except MachineFault as error:
        last = str(error)
    latest = weights(engine, "latest")
    back = hand.restore(engine, at_most=2)
    return {"told": told, "last": last, "latest": latest, "back": back.step}


@contextmanager
def full_disk() -> Iterator[None]:
    """Inside, what is begun cannot be finished."""

    def fail(file: Path, tensors: Any) -> Any:
        file.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.checkpoints.write_part", fail)
        yield


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("failed")
    return folder, in_small_world(fail_in_the_middle, str(folder), num_workers=1, threads=1)


def test_a_full_disk_costs_one_checkpoint_and_is_told(failed):
    _, found = failed
    assert [(event.kind, event.step) for event in found["told"]] == [("checkpoint failed", 2)]
    assert "No space left on device" in found["told"][0].text


def test_a_last_checkpoint_that_fails_is_an_error(failed):
    folder, found = failed
    assert f"{folder}/step-0000009: the last checkpoint cannot be written" in found["last"]
    assert "No space left on device" in found["last"]


def test_rolled_back_the_checkpoints_after_it_are_gone_and_nothing_half_written_stays(failed):
    folder, found = failed
    assert found["back"] == 1
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"step-0000001"}
    assert len(files) == 2


def test_figures_of_steps_and_what_others_remember_come_back(tmp_path):
    progress = Progress(
        step=3,
        records=(StepRecord(step=3, metrics={"loss": 0.1 + 0.2}, damaged=["a"], images=["b"]),),
        guard={"norms": [1.0, 2.5]},
        validation={"newest": 0.5, "newest_step": 7, "goal": "higher"},
        damaged=(4, 7),
    )
    found = in_small_world(there_and_back, (str(tmp_path), progress), num_workers=1, threads=1)
    assert found == progress


def test_long_records_make_no_checkpoint_that_is_too_long_to_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.manifests.MAX_MANIFEST_BYTES", 20_000)
    records = tuple(
        StepRecord(step=step, metrics={"loss": 0.5}, images=[f"image-{step}"] * 100)
        for step in range(1, 21)
    )
    manifest = Manifest(
        step=20,
        optimizer_steps=0,
        states=(),
        elements={"weight": 1},
        buffers={},
        parts=(
            PartEntry(name="part-00000-of-00001-1a2b3c4d.safetensors", bytes=9, blake3="0" * 64),
        ),
        world_size=1,
        zero_stage=2,
        precision="fp32",
        progress=Progress(step=20, records=records),
        run_id="run",
        config={},
        dataset_digest="d" * 64,
        made_by={},
    )
    manifest.write(Location.of(str(tmp_path)))
    found = [each.step for each in read_manifest(Location.of(str(tmp_path))).progress.records]
    assert 0 < len(found) < len(records)
    assert found == list(range(21 - len(found), 21))


def there_and_back(task: tuple[str, Progress], rank: int) -> Progress:
    folder, progress = task
    engine = made(VARIANT, seed=1)
    hand, _ = checkpoints(folder, VARIANT, writing="foreground")
    hand.save(engine, progress, wait=False)
    return hand.restore(made(VARIANT, seed=2))


@pytest.fixture
def ten(good, tmp_path) -> Location:
    """Checkpoints after steps 1 to 10, as far as their folders tell; those of 3 and 8 are best.

    That of 6 only knows of a validation before it.
    """
    for step in range(1, 11):
        folder = tmp_path / f"step-{step:07d}"
        shutil.copytree(good / "step-0000003", folder)
        told = json.loads((folder / "manifest.json").read_text())
        told |= {"step": step}
        told["progress"] |= {
            "step": step,
            "validation": Standing(
                measured="test: all",
                figure="accuracy",
                goal="higher",
                newest=2.0 if step == 6 else float(step in (3, 8)),
                newest_step=step - (step == 6),
            ).as_json(),
        }
        del told["blake3"]
        signed = blake3(json.dumps(told, sort_keys=True).encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps({"blake3": signed, **told}))
    return Location.of(str(tmp_path))


def steps_in(folder: Location) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in Path(folder.path).iterdir())


def test_the_newest_and_the_best_are_kept(ten):
    assert best(ten, range(1, 11)) == [3, 8, 1, 2, 4, 5, 7, 9, 10]
    prune(ten, keep_last=2, keep_best=2)
    assert steps_in(ten) == [3, 8, 9, 10]


def test_a_damaged_one_is_not_counted_and_not_deleted(ten):
    prune(ten, keep_last=2, keep_best=0, spared={10, 4})
    assert steps_in(ten) == [4, 8, 9, 10]


def test_what_was_never_finished_goes_when_it_is_older_than_a_checkpoint(ten):
    for step in (4, 10):
        Path(ten.path, f"step-{step:07d}", "manifest.json").unlink()
    clear_leftovers(ten)
    assert steps_in(ten) == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_a_part_is_a_safetensors_file_of_any_dtype_and_its_checksum_is_right(tmp_path):
    tensors = {
        Key(kind="weight", name="a/b@c", start=5): torch.randn(7),
        Key(kind="buffer", name="n"): torch.arange(3),
        Key(kind="buffer", name="half"): torch.randn(2, 2).bfloat16(),
        Key(kind="buffer", name="flag"): torch.tensor(True),
        Key(kind="weight", name="turned", start=0): torch.randn(3, 4).t(),
    }
    written = write_part(tmp_path / "part", tensors)
    assert written.bytes == (tmp_path / "part").stat().st_size
    assert written.blake3 == blake3((tmp_path / "part").read_bytes()).hexdigest()
    found = load_file(tmp_path / "part")
    assert found.keys() == {str(key) for key in tensors}
    for key, tensor in tensors.items():
        assert Key.of(str(key)) == key
        assert torch.equal(found[str(key)], tensor.reshape(-1))
