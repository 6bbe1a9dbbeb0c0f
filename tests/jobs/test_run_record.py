"""A training has one MLflow run, also when its driver was killed as soon as it had made it."""

import mlflow
import pytest

from jobs.run_record import RunRecord, read_record
from jobs.train import begun
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
