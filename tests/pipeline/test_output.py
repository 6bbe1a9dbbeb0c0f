"""A dataset is whole or is not there, and nobody else's files are touched."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import Stage, preprocess
from pipeline.schema import SHARDS_FOLDER, shard_name
from pipeline.verify import verify
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


def files_of(stored: Dataset) -> set[str]:
    """The files that a dataset consists of, told without the code that cleans up."""
    shards = {part.shard for record in stored.images() for part in record.parts}
    return {"dataset.json", *shards, *(table["name"] for table in stored.info.tables.values())}


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
    assert "dataset.json" not in files(out)
    # what other versions, a task that outlived its job, or a power cut may leave
    (out / SHARDS_FOLDER / "a-0000000017.arrow").write_bytes(b"half")
    (out / shard_name("0" * 12, "0" * 16)).write_bytes(b"half")
    (out / SHARDS_FOLDER / ".a-000018.arrow.partial-0123abcd").write_bytes(b"half")
    (out / "journal" / ("0" * 12 + "-" + "0" * 16 + ".arrow")).write_bytes(b"half")
    (out / "mine.txt").write_text("keep me")
    (out / SHARDS_FOLDER / "notes.arrow").write_text("keep me too")
    with pytest.raises(ValueError, match="not a finished dataset"):
        open_dataset(config.output)
    left = []

    def looks(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        left.append(files(out))
        yield from in_process(stage, tasks)

    preprocess(config, run_stage=looks)
    assert not any(
        "00000000" in name or ".partial" in name for name in left[0]
    )  # room for new shards
    assert files(out) == {
        "mine.txt",
        f"{SHARDS_FOLDER}/notes.arrow",
        *files_of(open_dataset(config.output)),
    }
    assert verify(open_dataset(config.output)) == []


def test_a_finished_dataset_is_refused_or_replaced_as_asked(config: PreprocessConfig) -> None:
    first = preprocess(config, run_stage=in_process)
    with pytest.raises(ValueError, match=r"holds a dataset already; .* if_exists=replace"):
        preprocess(config, run_stage=in_process)
    smaller = changed(
        config, if_exists="replace", grouping=GroupingConfig(group_side_px=32, patch_px=16)
    )
    second = preprocess(smaller, run_stage=in_process)
    assert second.digest != first.digest
    assert verify(open_dataset(config.output)) == []
    third = preprocess(changed(config, if_exists="replace"), run_stage=in_process)
    assert third.digest == first.digest
    stored = open_dataset(config.output)
    assert verify(stored) == []
    assert files(Path(config.output)) == files_of(stored)


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_a_replacement_that_dies_leaves_the_old_dataset_whole(
    config: PreprocessConfig, tasks: int
) -> None:
    first = preprocess(config, run_stage=in_process)
    before = files(Path(config.output))
    other = changed(config, if_exists="replace", grouping=GroupingConfig(group_side_px=32))
    with pytest.raises(KeyboardInterrupt):
        preprocess(other, run_stage=dies_after(tasks))
    assert before < files(Path(config.output))
    stored = open_dataset(config.output)
    assert stored.info.digest == first.digest
    assert verify(stored) == []


def test_a_dataset_of_another_schema_version_stays_until_it_is_replaced(
    config: PreprocessConfig,
) -> None:
    out = Path(config.output)
    (out / SHARDS_FOLDER).mkdir(parents=True)
    former = (
        "images.parquet",
        "quarantine-b.parquet",
        "shards/b-0123456789ab-000000.arrow",
    )
    for name in former:
        (out / name).write_bytes(b"of another version")
    (out / "dataset.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match="of another schema version"):
        preprocess(changed(config, if_exists="append"), run_stage=in_process)
    with pytest.raises(KeyboardInterrupt):
        preprocess(changed(config, if_exists="replace"), run_stage=dies_after(1))
    assert set(former) < files(out)
    preprocess(changed(config, if_exists="replace"), run_stage=in_process)
    assert files(out) == files_of(open_dataset(config.output))


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
    assert verify(open_dataset(config.output)) == []


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
