"""`farreach evaluate` in bounded memory: the same figures from a chunk of groups at a time."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fit_model import weights
from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.engine import Bounded
from fit_model.groups import GroupBatch
from fit_model.model import Model
from fit_model.models import build
from fit_model.vix import VixConfig
from jobs import cli
from jobs.predictions import Measuring
from jobs.targets import read_labelled
from jobs.train import model_config
from pipeline.dataset import open_dataset
from tests.fit_model.examples import randomize
from tests.jobs import small_generating
from tests.jobs.small_training import train_config

CHUNK = 2


@pytest.fixture(scope="module")
def datasets(tiny_dataset, tmp_path_factory) -> dict[str, str]:
    """What each face is measured on: images of one to six groups."""
    made = small_generating.write_dataset(tmp_path_factory.mktemp("generating"))
    return {"encoder": tiny_dataset, "diffusion": made, "autoregressive": made}


def untrained(face: str, dataset: str) -> Model:
    predicts = face == "encoder"
    config = train_config(dataset) if predicts else small_generating.train_config(dataset, face)
    return randomize(build(model_config(config, open_dataset(dataset))))


def measured(model: Model, dataset: str, bounded: BoundedConfig | None) -> np.ndarray:
    """The measures of all test images in one batch."""
    labelled = read_labelled(open_dataset(dataset), model.config.head, split="test")
    work = Measuring(
        model=model,
        dataset=dataset,
        labelled=labelled,
        device="cpu",
        threads=torch.get_num_threads(),
        bounded=bounded,
    ).open()
    return np.array(work(range(len(labelled.records))).to_pylist())


@pytest.fixture
def moved(monkeypatch) -> list[int]:
    """How many groups were moved to the device, move by move."""
    counts, to = [], GroupBatch.to

    def counted(batch: GroupBatch, device: torch.device | str) -> GroupBatch:
        counts.append(len(batch.image))
        return to(batch, device)

    monkeypatch.setattr(GroupBatch, "to", counted)
    return counts


@pytest.fixture
def cut(monkeypatch) -> list[int]:
    """Into how many chunks images were cut, pass by pass."""
    counts, chunks = [], Bounded.chunks

    def counted(runner: Bounded, num_groups: int) -> list[slice]:
        found = chunks(runner, num_groups)
        counts.append(len(found))
        return found

    monkeypatch.setattr(Bounded, "chunks", counted)
    return counts


@pytest.mark.parametrize("face", ["encoder", "diffusion", "autoregressive"])
def test_measures_in_bounded_memory_are_those_of_the_whole_pass(face, datasets, moved, cut):
    model = untrained(face, datasets[face]).double()
    wanted = measured(model, datasets[face], None)
    assert max(moved) > CHUNK
    assert not cut
    moved.clear()
    config = BoundedConfig(groups_a_chunk=CHUNK, offload="disk")
    found = measured(model, datasets[face], config)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert wanted.std(0).min() > 1e-3
    assert min(cut) > 2
    assert max(moved, default=0) <= CHUNK


def evaluate(folder: Path, dataset: str, *settings: str):
    given = [f"model={folder}", f"dataset={dataset}", "images_per_batch=3", *settings]
    return CliRunner().invoke(cli.app, ["evaluate", *given])


def test_what_sees_its_images_whole_is_refused_as_in_training(tiny_dataset, tmp_path):
    face = VixConfig(patch_px=8, depth=1, width=8, heads=2)
    config = train_config(tiny_dataset, model=face)
    weights.save(build(model_config(config, open_dataset(tiny_dataset))), tmp_path / "vix")
    seen = evaluate(tmp_path / "vix", tiny_dataset, f"bounded.groups_a_chunk={CHUNK}")
    assert seen.exit_code == 2
    (line,) = seen.stderr.splitlines()
    with pytest.raises(ValueError, match="kind 'vix' sees its images whole") as training:
        train_config(tiny_dataset, model=face, bounded=BoundedConfig())
    assert line == f"farreach evaluate: {training.value}"


def test_the_settings_of_bounded_memory_are_listed():
    seen = CliRunner().invoke(cli.app, ["settings", "evaluate"])
    listed = dict(line.split(maxsplit=1) for line in seen.output.splitlines())
    assert listed["bounded"].strip() == "null"
    assert {"bounded.groups_a_chunk", "bounded.offload", "bounded.folder"} <= listed.keys()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_the_command_line_gives_the_same_scores_in_bounded_memory(store, datasets):
    folder, dataset = store / "model", datasets["diffusion"]
    weights.save(untrained("diffusion", dataset), folder)
    scores = []
    for name, settings in {"whole": (), "chunks": (f"bounded.groups_a_chunk={CHUNK}",)}.items():
        seen = evaluate(folder, dataset, f"experiment={name}", *settings)
        assert seen.exit_code == 0, seen.output
        (run,) = mlflow.search_runs(experiment_names=[name], output_format="list")
        scores.append(run.data.metrics)
    assert len(scores[0]) == 12
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    # that the setting arrives where the model runs
    seen = evaluate(folder, dataset, "bounded.offload=disk", f"bounded.folder={store}/nowhere")
    assert seen.exit_code == 2
    (line,) = seen.stderr.splitlines()
    assert f"data tokens cannot wait in {store}/nowhere: No such file or directory" in line
