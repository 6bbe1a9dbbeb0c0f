"""A dataset is whole or is not there, and nobody else's files are touched."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import Stage, preprocess
from pipeline.output import claim
from pipeline.schema import SHARDS_FOLDER, shard_name
from pipeline.storage import Location
from tests.pipeline.scenes import in_process, noise, stores, write_raster


@pytest.fixture
def config(tmp_path: Path) -> PreprocessConfig:
    """Two images that fill several shards."""
    for name in ("a", "b"):
        write_raster(tmp_path / "in" / f"{name}.tif", noise(700, 700, 3, seed=ord(name)))
    return PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=64),
        shard_mb=1,
    )


def changed(config: PreprocessConfig, **settings: object) -> PreprocessConfig:
    return PreprocessConfig(**{**vars(config), **settings})


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def dies_after(tasks: int):
    """A runner that is interrupted after some tasks of the store stage."""

    def run(stage: Stage, each: list[pa.Table]):
        for number, result in enumerate(in_process(stage, each)):
            if number == tasks and stores(each):
                raise KeyboardInterrupt
            yield result

    return run


def test_an_interrupted_job_leaves_no_dataset_and_the_next_one_cleans_up(
    config: PreprocessConfig,
) -> None:
    out = Path(config.output)
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, run_stage=dies_after(2))
    assert files(out) == {"unfinished.json"}
    # what a task that outlived the job, or a power cut, may leave
    (out / SHARDS_FOLDER).mkdir(exist_ok=True)
    (out / SHARDS_FOLDER / "a-000017.arrow").write_bytes(b"half")
    (out / SHARDS_FOLDER / ".a-000018.arrow.partial-0123abcd").write_bytes(b"half")
    (out / "mine.txt").write_text("keep me")
    (out / SHARDS_FOLDER / "notes.arrow").write_text("keep me too")
    with pytest.raises(ValueError, match="not a finished dataset"):
        open_dataset(config.output)
    preprocess(config, run_stage=in_process)
    left = files(out)
    assert {"mine.txt", f"{SHARDS_FOLDER}/notes.arrow", "dataset.json"} <= left
    assert not any("000017" in name or "partial" in name or "unfinished" in name for name in left)
    assert open_dataset(config.output).verify() == []


def test_a_finished_dataset_is_refused_or_replaced_as_asked(config: PreprocessConfig) -> None:
    first = preprocess(config, run_stage=in_process)
    with pytest.raises(ValueError, match=r"holds a dataset already; .* if_exists=replace"):
        preprocess(config, run_stage=in_process)
    smaller = changed(
        config, if_exists="replace", grouping=GroupingConfig(group_side_px=32, patch_px=16)
    )
    second = preprocess(smaller, run_stage=in_process)
    assert second.digest != first.digest
    assert open_dataset(config.output).verify() == []
    third = preprocess(changed(config, if_exists="replace"), run_stage=in_process)
    assert third.digest == first.digest
    assert open_dataset(config.output).verify() == []
    assert not any(name.startswith("shards/b") for name in files(Path(config.output)))
    assert "images-b.parquet" not in files(Path(config.output))


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_a_replacement_that_dies_leaves_the_old_dataset_whole(
    config: PreprocessConfig, tasks: int
) -> None:
    first = preprocess(config, run_stage=in_process)
    before = files(Path(config.output))
    other = changed(config, if_exists="replace", grouping=GroupingConfig(group_side_px=32))
    with pytest.raises(KeyboardInterrupt):
        preprocess(other, run_stage=dies_after(tasks))
    assert files(Path(config.output)) - before == {"unfinished.json"}
    stored = open_dataset(config.output)
    assert stored.info.digest == first.digest
    assert stored.verify() == []


@pytest.mark.parametrize("if_exists", ["refuse", "replace"])
@pytest.mark.parametrize("tasks", [0, 2])
def test_a_job_whose_output_another_one_took_fails_and_leaves_the_other_s_dataset_whole(
    config: PreprocessConfig, tasks: int, if_exists: str
) -> None:
    if if_exists == "replace":
        preprocess(config, run_stage=in_process)
    other = changed(config, if_exists=if_exists, grouping=GroupingConfig(group_side_px=32))
    reports = []

    def overtaken(stage: Stage, each: list[pa.Table]):
        for number, result in enumerate(in_process(stage, each)):
            if stores(each) and number == tasks:
                reports.append(preprocess(other, run_stage=in_process))
            yield result

    with pytest.raises(ValueError, match=r"out: another preprocess job has taken over") as caught:
        preprocess(changed(config, if_exists=if_exists), run_stage=overtaken)
    assert "\n" not in str(caught.value)
    stored = open_dataset(config.output)
    assert stored.info.digest == reports[0].digest
    assert stored.verify() == []
    used = {part.shard for record in stored.images() for part in record.parts}
    assert {name for name in files(Path(config.output)) if name.startswith("shards")} == used


def test_a_job_that_fails_leaves_alone_what_the_one_that_took_over_has_written(
    config: PreprocessConfig,
) -> None:
    place = Location.of(config.output)

    def two_jobs() -> None:
        with claim(place) as slow, claim(place) as quick:
            place.child(shard_name(0, writer=quick.writer)).write_bytes(b"quick")
            place.child(shard_name(0, writer=slow.writer)).write_bytes(b"slow")
            quick.write_table("images", pa.table({"image_id": ["quick"]}))
            with pytest.raises(ValueError, match="has taken over"):
                slow.write_table("images", pa.table({"image_id": ["slow"]}))
            slow.discard()
            left = {"unfinished.json", "images.parquet", shard_name(0, writer=quick.writer)}
            assert files(Path(config.output)) == left
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two_jobs()
    assert files(Path(config.output)) == {"unfinished.json"}


def test_a_damaged_dataset_is_not_replaced_blindly(config: PreprocessConfig) -> None:
    preprocess(config, run_stage=in_process)
    info = Path(config.output) / "dataset.json"
    info.write_text('{"schema_version": 1, "gene')
    before = files(Path(config.output))
    with pytest.raises(ValueError, match=r"dataset.json is damaged or not ours; delete the folder"):
        preprocess(changed(config, if_exists="replace"), run_stage=in_process)
    assert files(Path(config.output)) == before


def test_an_old_dataset_stays_whole_until_the_new_one_is_published(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = preprocess(config, run_stage=in_process)

    def no_clean(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # killed just before dataset.json is written

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.output.Claim.publish", no_clean)
        with pytest.raises(KeyboardInterrupt):
            preprocess(changed(config, if_exists="replace"), run_stage=in_process)
    assert open_dataset(config.output).info.digest == first.digest
    assert open_dataset(config.output).verify() == []


def test_a_folder_of_other_things_is_not_written_into(config: PreprocessConfig) -> None:
    out = Path(config.output)
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"is not empty and holds no dataset \(thesis.tex\)"):
        preprocess(config, run_stage=in_process)
    (out / "thesis.tex").unlink()
    out.rmdir()
    out.write_text("a file")
    with pytest.raises(ValueError, match="is a file; output names a folder"):
        preprocess(config, run_stage=in_process)
