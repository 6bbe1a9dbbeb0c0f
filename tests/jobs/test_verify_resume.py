"""`farreach verify-resume` kills a training, finds it equal, and finds what is planted."""

import json
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from jobs.cli import app
from jobs.errors import MachineFault
from jobs.histories import read_history
from jobs.killed_training import Kill
from jobs.settings import load, to_dict
from jobs.trace import TRACE
from jobs.tracking import SQLITE
from jobs.train_config import TrainConfig
from jobs.verify_resume import KillsConfig, VerifyResumeConfig, judge, noticed, training
from pipeline.dataset import open_dataset
from tests.jobs.small_training import order_of, train_config

pytestmark = pytest.mark.timeout(900)
REPOSITORY = Path(__file__).parents[2]
STEPS = 100


def settings(dataset: str) -> dict:
    """As in a file for `farreach train`."""
    return to_dict(train_config(dataset, total_steps=7))


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the command said, and where it left what it found."""

    result: Result
    folder: Path


@pytest.fixture(scope="module")
def verified(tiny_dataset, tmp_path_factory) -> Verified:
    """The command as a user types it, with a kill of the driver and one of a worker."""
    folder = tmp_path_factory.mktemp("verified")
    (folder / "train.yaml").write_text(json.dumps(settings(tiny_dataset)))
    asked = {
        "output": "trial",
        "steps": STEPS,
        "kills": 2,
        "victims": '["driver", "worker"]',
        "checkpoint_every_steps": 20,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        given = [f"verify.{name}={value}" for name, value in asked.items()]
        result = CliRunner().invoke(app, ["verify-resume", "train.yaml", *given])
    return Verified(result=result, folder=folder / "trial")


def kill(at_s: float, *, typed_again: bool) -> Kill:
    return Kill(what="", moment="training", step=9, at_s=at_s, typed_again=typed_again)


def test_a_kill_is_not_asked_for_that_another_follows_before_it_is_noticed():
    made = [
        untold := kill(0, typed_again=False),
        kill(20, typed_again=True),
        unseen := kill(21, typed_again=False),
        kill(25, typed_again=False),
        kill(31, typed_again=False),
        kill(90, typed_again=True),
    ]
    assert noticed(made) == [each for each in made if each not in (untold, unseen)]


@pytest.mark.ray
def test_a_killed_training_is_found_equal(verified):
    assert verified.result.exit_code == 0, verified.result.output
    found = json.loads((verified.folder / "verify.json").read_text())
    assert len(found["kills"]) == 2
    assert {each["what"] for each in found["kills"]} == {"driver", "RayTrainWorker"}
    assert all(each["equal"] for each in found["comparisons"])
    assert "equal after 2 kills" in verified.result.output


@pytest.mark.ray
def test_nothing_of_it_is_left_running(verified):
    assert verified.result.exit_code == 0
    for process in psutil.process_iter(["cmdline"]):
        assert str(verified.folder) not in " ".join(process.info["cmdline"] or [])


def again(verified: Verified, kills: int = 2) -> str:
    """The comparison once more; what it says."""
    config = load(VerifyResumeConfig, verified.folder.parent / "train.yaml")
    asked = KillsConfig(output=str(verified.folder), steps=STEPS, kills=2)
    parts = [
        training(
            replace(config, verify=asked),
            part,
            verified.folder,
            store=f"{SQLITE}{verified.folder}/mlflow.db",
        )
        for part in ("undisturbed", "killed")
    ]
    made = [Kill(what="driver", moment="starting", step=1, at_s=0.0)] * kills
    said = StringIO()
    judge(replace(config, verify=asked), *parts, made, Console(file=said, width=200))
    return said.getvalue()


@pytest.mark.ray
def test_a_loss_that_differs_in_its_last_bit_is_found(verified):
    assert "equal after 2 kills" in again(verified)
    place = verified.folder / "runs" / "tiny-killed" / TRACE
    before = place.read_text()
    lines = before.splitlines()
    loss = json.loads(lines[16])["loss"]
    exponent = loss.index("p")
    # a float32's last digit
    digit = "0" if loss[exponent - 7] != "0" else "2"
    other = loss[: exponent - 7] + digit + loss[exponent - 6 :]
    place.write_text(before.replace(lines[16], lines[16].replace(loss, other)))
    try:
        with pytest.raises(MachineFault, match=r"^losses differ: step 17: loss 0\.\d+ and 0\.\d+"):
            again(verified)
    finally:
        place.write_text(before)


@pytest.mark.ray
def test_a_trial_with_too_few_kills_is_none(verified):
    with pytest.raises(MachineFault, match="over after 1 of 2 kills: take a larger"):
        again(verified, kills=1)


@pytest.mark.ray
def test_the_traced_images_are_those_of_the_steps(verified, tiny_dataset):
    config = train_config(tiny_dataset)
    dataset = open_dataset(tiny_dataset)
    records = [each for each in dataset.images("train") if each.groups]
    order = order_of(dataset, records, config.batch)
    made = training(
        VerifyResumeConfig(**vars(config)), "killed", verified.folder, store="sqlite:///none"
    )
    history = read_history(
        made.folder,
        experiment=config.experiment,
        name=made.name,
        store=f"{SQLITE}{verified.folder}/mlflow.db",
    )
    for each in history.steps:
        wanted = sorted(records[number].image_id for number in order.batch(each.step - 1))
        assert list(each.images) == wanted


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("verify.kills=0", "verify.kills is 0: at least 1, and less than verify.steps 200"),
        ("verify.kills=200", "verify.kills is 200"),
        ("verify.victims=[]", "verify.victims is empty; choose of worker, driver, ray"),
        ("verify.workers=[2, 0]", "verify.workers is [2, 0]: give positive numbers"),
        ("verify.tolerance=-1.0", "verify.tolerance is -1.0: it cannot be negative"),
        ("verify.tolerence=1", "did you mean 'verify.tolerance'?"),
        ("verify.output=here", "here exists: choose another verify.output, or delete it"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(setting, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "train.yaml").write_text(json.dumps(settings("nowhere")))
    found = CliRunner().invoke(app, ["verify-resume", "train.yaml", setting])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_a_training_that_cannot_begin_is_told_as_train_tells_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text(json.dumps(settings("nowhere")))
    found = CliRunner().invoke(app, ["verify-resume", "train.yaml", "verify.output=trial"])
    assert found.exit_code == 2
    assert "nowhere: no such folder" in found.output


@pytest.mark.parametrize("num_workers", [2, [1, 2]])
def test_without_numbers_to_change_to_each_start_has_the_workers_of_the_settings(
    num_workers, tmp_path
):
    given = settings("dataset") | {"workers": {"num_workers": num_workers}}
    (tmp_path / "train.yaml").write_text(json.dumps(given))
    config = load(VerifyResumeConfig, tmp_path / "train.yaml")
    typed = training(config, "killed", tmp_path, store="").settings
    (tmp_path / "killed.yaml").write_text(json.dumps(typed))
    for overrides in config.verify.overrides:
        assert load(TrainConfig, tmp_path / "killed.yaml", overrides).workers == config.workers


@pytest.mark.parametrize(
    ("asked", "kills", "victims", "tolerance"),
    [
        (KillsConfig(), 10, ("worker", "driver", "ray"), 0.0),
        (KillsConfig(workers=(2, 1, 2)), 2, ("driver",), 1e-5),
        (KillsConfig(workers=(2, 2)), 1, ("driver",), 0.0),
        (KillsConfig(workers=(2, 1), tolerance=0.0, kills=5), 5, ("driver",), 0.0),
    ],
)
def test_what_goes_without_saying(asked, kills, victims, tolerance):
    assert (asked.num_kills, tuple(asked.killed), asked.accepted) == (kills, victims, tolerance)
