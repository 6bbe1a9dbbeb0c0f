"""Every command helps quickly, and what goes wrong is one line and an exit code."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from typer.testing import CliRunner

from jobs import cli, runner, submit
from jobs.errors import MachineFault, UserError

REPOSITORY = Path(__file__).parents[2]


def ended(error: BaseException, capsys, *, debug: bool = False) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught, runner.exit_codes("train", debug=debug):
        raise error
    return int(caught.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("steps 0: at least 1"), 2, "farreach train: steps 0: at least 1\n"),
        (ValueError("bad"), 2, "farreach train: bad\n"),
        (FileExistsError(17, "File exists", "out"), 2, "farreach train: out: File exists\n"),
        (FileNotFoundError("no bucket b"), 2, "farreach train: no bucket b\n"),
        (PermissionError(13, "Permission denied", "s3://b"), 2, "s3://b: Permission denied\n"),
        (MachineFault("no server"), 1, "farreach train: no server\n"),
        (
            OSError(28, "No space left on device"),
            1,
            "OSError: [Errno 28] No space left on device (--debug shows the traceback)\n",
        ),
        (KeyError("x"), 1, "farreach train: KeyError: 'x' (--debug shows the traceback)\n"),
        (RuntimeError(), 1, "farreach train: RuntimeError: RuntimeError (--debug"),
        (KeyboardInterrupt(), 130, "farreach train: interrupted\n"),
        # what Ray makes of a SIGTERM
        (SystemExit(signal.SIGTERM), 143, "farreach train: ended by SIGTERM\n"),
    ],
)
def test_an_error_becomes_its_exit_code_and_one_line(error, status, line, capsys):
    seen_status, seen = ended(error, capsys)
    assert seen_status == status
    assert line in seen
    assert seen.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    status, seen = ended(UserError("steps 0"), capsys, debug=True)
    assert status == 2
    assert "Traceback" in seen
    assert seen.endswith("farreach train: steps 0\n")


def test_an_exit_code_that_a_job_chose_stays():
    with pytest.raises(SystemExit) as caught, runner.exit_codes("doctor"):
        raise SystemExit(7)
    assert caught.value.code == 7


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_mistake_found_on_a_ray_worker_is_the_users_too(capsys):
    import ray

    @ray.remote
    def work() -> None:
        raise ValueError("image a.tif: no bands")

    with pytest.raises(ValueError, match="no bands") as caught:
        ray.get(work.remote())
    assert ended(caught.value, capsys) == (2, "farreach train: image a.tif: no bands\n")


@dataclass
class WorkerGroupError(RuntimeError):
    worker_failures: dict[int, Exception]


def test_of_a_group_of_workers_the_one_that_made_the_mistake_is_shown(capsys):
    error = WorkerGroupError({0: RuntimeError("peer gone"), 1: UserError("dataset is empty")})
    assert ended(error, capsys) == (2, "farreach train: dataset is empty\n")


DEAD = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info", ActorDiedError())
NO_ANSWER = ConnectionError("group worker 0 of 2 got no answer")


@pytest.mark.parametrize(
    ("failures", "status", "line"),
    [
        ({1: DEAD}, 1, "farreach train: worker 1 died in the middle: it was killed or crashed"),
        ({0: NO_ANSWER, 1: DEAD}, 1, "farreach train: worker 1 died in the middle"),
        ({0: NO_ANSWER, 1: OSError("no space")}, 1, "farreach train: OSError: no space"),
        ({0: NO_ANSWER}, 1, "farreach train: group worker 0 of 2 got no answer"),
        ({0: DEAD, 1: UserError("dataset is empty")}, 2, "farreach train: dataset is empty"),
    ],
)
def test_of_a_group_of_workers_the_one_that_broke_the_others_off_is_named(
    failures, status, line, capsys
):
    seen_status, seen = ended(WorkerGroupError(failures), capsys)
    assert seen_status == status
    assert seen.startswith(line)
    assert seen.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("preprocess", ("Reads", "Writes")),
        ("inspect", ("Reads", "Writes")),
        ("verify", ("Reads", "Prints", "Exits")),
        ("train", ("Reads", "Writes")),
        ("verify-resume", ("Reads", "Compares", "Writes", "Exits")),
        ("evaluate", ("Reads", "Writes")),
        ("generate", ("Reads", "Writes")),
        ("demo", ("Writes",)),
        ("plan", ("Prints", "Needs")),
        ("doctor", ("Reads", "Writes")),
        ("submit", ("Reads",)),
        ("models", ("Reads", "Writes")),
    ],
)
def test_every_command_says_what_it_reads_and_writes_and_gives_an_example(command, words):
    seen = CliRunner().invoke(cli.app, [command, "--help"])
    assert seen.exit_code == 0
    assert f"Example  farreach {command}" in seen.stdout
    assert all(word in seen.stdout for word in words)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from jobs import cli\n"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
        "print({'torch', 'ray', 'mlflow', 'numpy', 'pydantic', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_module_runs_like_its_command(tmp_path):
    for start in (["jobs.cli", "preprocess"], ["jobs.preprocess"]):
        done = subprocess.run(
            [sys.executable, "-m", *start, "sourcse=x", "output=y"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            "farreach preprocess: command line: no setting 'sourcse'; did you mean 'sources'?"
        ]


@pytest.mark.usefixtures("store")
def test_models_can_be_browsed_before_there_are_any(capsys):
    seen = CliRunner().invoke(cli.app, ["models", "list"])
    assert seen.exit_code == 0
    assert "no models yet" in seen.stdout
    seen = CliRunner().invoke(cli.app, ["models", "show", "absent@champion"])
    assert seen.exit_code == 2
    assert "no model 'absent'; there are: (none yet)" in seen.stderr


@pytest.mark.parametrize(
    ("arguments", "path", "overrides"),
    [
        (["digits@best"], None, ['model="digits@best"']),
        (["7", "a.yaml", "seed=1"], "a.yaml", ['model="7"', "seed=1"]),
        (["a.yaml", "seed=1"], "a.yaml", ["seed=1"]),
        (["model=m", "seed=1"], None, ["model=m", "seed=1"]),
        ([], None, []),
        (["runs/lr=0.1/model", "seed=1"], None, ['model="runs/lr=0.1/model"', "seed=1"]),
        (["s3://b/lr=0.1", "b/lr=1/a.yaml"], "b/lr=1/a.yaml", ['model="s3://b/lr=0.1"']),
        (["lr=0.1"], None, ['model="lr=0.1"']),
        (["model=a/lr=0.1"], None, ["model=a/lr=0.1"]),
    ],
)
def test_generate_takes_the_model_first_without_its_name(
    arguments, path, overrides, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    seen, rest = runner.split_arguments("generate", arguments)
    assert (seen, rest) == (path and Path(path), overrides)


def test_other_jobs_take_a_file_first():
    assert runner.split_arguments("train", ["a", "b=1"]) == (Path("a"), ["b=1"])


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("num_images=0", "num_images 0 must be at least 1"),
        ("autoregressive.top_p=1.5", "top_p is 1.5: it must lie in (0, 1]"),
        ("diffusion.schedule=cosinus", "schedule 'cosinus' is unknown; did you mean 'cosine'?"),
        ("diffusion.stesp=3", "no setting 'diffusion.stesp'; did you mean 'diffusion.steps'?"),
        ("seed=1", "no model 'absent'; there are: (none yet)"),
    ],
)
def test_a_mistake_in_what_to_generate_is_one_line(override, says):
    seen = CliRunner().invoke(cli.app, ["generate", "absent@champion", "output=made", override])
    assert seen.exit_code == 2
    (line,) = seen.stderr.splitlines()
    assert line.startswith("farreach generate: ")
    assert says in line


def test_every_job_with_settings_that_a_cluster_can_run_can_be_submitted():
    assert set(cli.CONFIG_CLASSES) - {"demo", "plan", "verify-resume"} <= set(submit.JOBS)


@pytest.mark.parametrize("name", cli.DESCRIBED)
def test_everything_that_has_settings_lists_them(name):
    found = CliRunner().invoke(cli.app, ["settings", *name.split()])
    assert found.exit_code == 0, found.output
    assert found.output.splitlines()


def test_settings_of_a_name_with_a_typo_name_what_is_meant():
    found = CliRunner().invoke(cli.app, ["settings", "trian"])
    assert found.exit_code == 2
    assert "did you mean 'train'? choose of preprocess, inspect" in found.stderr
