"""The demo as a newcomer runs it, made small; and a folder that is not its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.demo import MARK, DemoConfig, fresh_folder, main
from jobs.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.ray
def test_a_small_demo_runs_the_whole_road_and_says_what_to_type_next(tmp_path, tmp_path_factory):
    compiled = tmp_path_factory.mktemp("compiled")
    environment = {
        name: each for name, each in os.environ.items() if not name.startswith(("RAY_", "MLFLOW"))
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.demo", "folder=small", "total_steps=2"),
            *("scenes.training_scenes=32", "scenes.heldout_scenes=6"),
        ],
        cwd=tmp_path,
        env=environment
        | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        | {"TORCH_EXTENSIONS_DIR": str(compiled)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "38 image(s)" in done.stdout
    for reader in ("nobody", "one group of 64 x 64 px", "one quarter of the scene", "FIT, scenes@"):
        assert reader in done.stdout
    assert done.stdout.count("farreach models show scenes@") == 1
    assert (tmp_path / "small" / "mlflow.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert "Traceback" not in done.stderr
    # what is compiled at first use takes minutes, and a kill in the middle locks out all others
    assert not list(compiled.rglob("*"))


def test_a_folder_that_no_demo_made_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no demo made it: choose another with folder=NAME"):
        main(DemoConfig(folder=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_earlier_demo_makes_room(tmp_path):
    folder = fresh_folder(tmp_path / "demo")
    (folder / "mlflow.db").touch()
    fresh_folder(folder)
    assert {path.name for path in folder.iterdir()} == {
        MARK, "preprocess.yaml", "train.yaml", "evaluate.yaml",
    }  # fmt: skip
