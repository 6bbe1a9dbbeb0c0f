"""What a run's folder says of it: one MLflow run however a driver ends; damage in one line."""

from dataclasses import replace

import mlflow
import pytest

from jobs.best import FOLDER, read_best
from jobs.best import RECORD as BEST
from jobs.one_run import begun, held_run
from jobs.run_record import RECORD, RunRecord, read_record
from pipeline.storage import Location
from tests.jobs.small_training import train_config

BLANK = RunRecord(run_id="", config={}, digest="d")


def runs() -> list[str]:
    found = mlflow.search_runs(experiment_names=["tests"], output_format="list")
    return [each.info.run_id for each in found]


@pytest.mark.usefixtures("store")
def test_a_run_that_was_made_and_not_noted_is_found_again(tmp_path, monkeypatch):
    config, folder = train_config("nowhere"), str(tmp_path / "run")
    write = RunRecord.write

    def write_without_a_run(record: RunRecord, folder: str) -> None:
        if record.run_id:
            raise KeyboardInterrupt
        write(record, folder)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "write", write_without_a_run)
        with pytest.raises(KeyboardInterrupt):
            begun(config, BLANK, now=BLANK, folder=folder)
    (made,) = runs()
    before = read_record(folder)
    assert before is not None
    assert before.run_id == ""
    run, record = begun(config, before, now=BLANK, folder=folder)
    assert run.run_id == record.run_id == made
    assert read_record(folder) == record
    again, _ = begun(config, record, now=BLANK, folder=folder)
    assert again.run_id == made
    assert runs() == [made]


@pytest.mark.usefixtures("store")
def test_trainings_of_one_name_in_other_folders_are_other_runs(tmp_path):
    config = train_config("nowhere")
    for name in ("one", "other"):
        begun(config, BLANK, now=BLANK, folder=str(tmp_path / name))
    assert len(set(runs())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"run_id": "1", "config": 3, "digest": "d"}',
        '{"run_id": "1", "config": {}, "digest": null}',
        "[" * 100_000,
    ],
)
def test_a_damaged_record_of_a_run_is_named(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_record(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"step": 3}', '{"step": 3, "figure": "loss", "figures": {}}', "[" * 100_000],
)
def test_a_damaged_record_of_the_best_model_is_named(tmp_path, content):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / BEST).write_text(content)
    with pytest.raises(ValueError, match=r"best\.json is damaged"):
        read_best(str(tmp_path))


@pytest.mark.usefixtures("store")
def test_a_second_driver_is_refused_while_the_first_one_lives(tmp_path):
    config, folder = train_config("nowhere"), str(tmp_path / "run")
    with (
        held_run(config, folder, blank=BLANK, tell=print) as held,
        pytest.raises(ValueError, match="another job is at work here"),
    ):
        held_run(config, folder, blank=BLANK, tell=print).__enter__()
    assert runs() == [held.run.run_id]
    assert read_record(folder) == replace(held.record, finished=True)


@pytest.mark.usefixtures("store")
def test_a_driver_whose_run_was_taken_over_does_not_finish_it(tmp_path):
    config, folder = train_config("nowhere"), str(tmp_path / "run")
    with (
        pytest.raises(ValueError, match="another job has taken over here"),
        held_run(config, folder, blank=BLANK, tell=print),
    ):
        Location.of(folder).child("lease-000002.json").create_bytes(b"{}")
    record = read_record(folder)
    assert record is not None
    assert not record.finished
