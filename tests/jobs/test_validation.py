"""Validation measures the model that is exported, on any number of workers, and keeps the best."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from fit_model import weights
from fit_model.bounded.config import BoundedConfig
from fit_model.crew import Crew
from fit_model.model import Model
from fit_model.models import build
from fit_model.objective import PREFIX, Objective
from fit_model.parallel.config import ParallelConfig
from fit_model.parallel.crew import form_crew
from jobs.assignment import Assignment
from jobs.batches import Feed, image_seed
from jobs.best import FOLDER, RECORD, Exported, forget, model_folder, read_best, write_best
from jobs.engine import EngineConfig, OptimizerConfig, build_engine, full_weights, set_learning_rate
from jobs.sharing import Seat
from jobs.small_world import in_small_world
from jobs.standing import Standing, ValidationConfig
from jobs.targets import read_labelled
from jobs.train_config import TrainConfig
from jobs.validation import Validator, chosen_images, model_of, require_validation
from pipeline.dataset import open_dataset
from pipeline.storage import Location
from tests.jobs import small_generating
from tests.jobs.small_training import one_image, train_config, write_dataset, write_images
from tests.jobs.small_training import told as assigned

VALIDATION = ValidationConfig(split="test")
AVERAGED = OptimizerConfig(lr=0.05, ema_decay=0.5, clip_norm=0.0)
ONE_GRID_PX = ((32, 32), (20, 25), (17, 31))


def variants(tiny: str, grid: str, drawn: str) -> dict[str, TrainConfig]:
    """How a training may be cut and spread; the weights' average is kept in all of them."""
    config = train_config(tiny, optimizer=AVERAGED, validation=VALIDATION)
    shared = replace(config, dataset=grid, parallel=ParallelConfig(groups=2, timeout_s=120.0))
    named = {
        f"stage {stage}": replace(config, engine=EngineConfig(zero_stage=stage))
        for stage in range(4)
    }
    named["bf16"] = replace(config, engine=EngineConfig(zero_stage=2, precision="bf16"))
    named["bounded"] = replace(config, bounded=BoundedConfig(groups_a_chunk=1))
    named["part"] = replace(config, validation=replace(VALIDATION, images=3))
    named["shared"] = shared
    for face in small_generating.FACES:
        named[face] = small_generating.train_config(
            drawn, face, optimizer=AVERAGED, validation=VALIDATION
        )
    return named


def moved_engine(task: Assignment, validator: Validator, crew: Crew) -> Any:
    """An engine whose weights have left their average behind."""
    torch.manual_seed(1)
    engine = build_engine(
        Objective(build(task.model), bounded=task.bounded, crew=crew),
        optimizer=task.optimizer,
        engine=task.engine,
        accumulation=1,
        device=torch.device("cpu"),
    )
    feed = Feed(
        validator.dataset,
        labelled=read_labelled(validator.dataset, task.model.head, split="train"),
        head=task.model.head,
        config=task.batch,
        seat=validator.seat,
    )
    for batch in feed.stream(0, 2):
        set_learning_rate(engine, task.optimizer.lr)
        engine.backward(engine(batch.groups, batch.targets, batch.seeds).sum())
        engine.step()
    return engine


def validated(tasks: dict[str, Assignment], rank: int) -> dict[str, Any]:
    """Figures, events, the weights that should have been measured and the latest ones, by name."""
    found = {}
    for name, task in tasks.items():
        crew = form_crew(task.parallel)
        validator = Validator(
            task.validation,
            task=task,
            dataset=open_dataset(task.dataset),
            seat=Seat.of(rank, num_workers=2, parallel=task.parallel, face=task.model.face),
            crew=crew,
            device=torch.device("cpu"),
            advances=lambda: None,
        )
        validator.resume({})
        engine = moved_engine(task, validator, crew)
        told = validator(engine, step=1)
        averaged, latest = (
            {
                key.removeprefix(PREFIX): each.numpy()
                for key, each in full_weights(engine, which=which)
            }
            for which in ("averaged", "latest")
        )
        found[name] = dict(told.metrics), list(told.events), averaged, latest
    return found


@pytest.fixture(scope="module")
def named(tiny_dataset, tmp_path_factory) -> dict[str, tuple[TrainConfig, Assignment]]:
    folder = tmp_path_factory.mktemp("validation")
    write_images(folder / "images", sizes_px=ONE_GRID_PX)
    grid = write_dataset(folder / "images", folder / "dataset")
    drawn = small_generating.write_dataset(folder / "drawn")
    found = {}
    for name, config in variants(tiny_dataset, grid, drawn).items():
        config = replace(config, name=name.replace(" ", "-"))
        found[name] = config, assigned(config, folder / "runs", inbox=None)
    return found


@pytest.fixture(scope="module")
def results(named) -> dict[str, Any]:
    tasks = {name: task for name, (_, task) in named.items()}
    return in_small_world(validated, tasks, num_workers=2, threads=1)


def one_by_one(model: Model, dataset: str) -> np.ndarray:
    """The model's measures of the images of the test split, an image at a time."""
    stored, rows = open_dataset(dataset), []
    generates = model.config.head.kind == "generate"
    alone = small_generating.one_image if generates else one_image
    for number, record in enumerate(stored.images("test")):
        target = torch.tensor([model.config.head.classes.index(record.labels["kind"])])
        seeds = torch.tensor([image_seed(0, step=0, image=number)])
        with torch.inference_mode():
            rows.append(model.measures(alone(stored, record), target, seeds=seeds)[0])
    return torch.stack(rows).double().numpy()


def expected(model: Model, config: TrainConfig) -> dict[str, float]:
    """Loss and accuracy as scikit-learn counts them, or the mean loss of what makes images."""
    rows = one_by_one(model, config.dataset)
    if model.config.head.kind == "generate":
        return {"validation/loss": rows.mean()}
    records = open_dataset(config.dataset).images("test")
    truth = np.array([["bright", "dark"].index(each.labels["kind"]) for each in records])
    if config.validation.images is not None:
        chosen = chosen_images(
            config.validation, open_dataset(config.dataset), num_images=len(records)
        )
        assert len(set(chosen)) == config.validation.images
        rows, truth = rows[chosen], truth[chosen]
    shares = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    return {
        "validation/loss": metrics.log_loss(truth, shares, labels=[0, 1]),
        "validation/accuracy": metrics.accuracy_score(truth, rows.argmax(1)),
    }


NAMES = (
    "stage 0", "stage 1", "stage 2", "stage 3", "bf16", "bounded", "part", "shared", "diffusion",
    "autoregressive",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_two_workers_find_what_the_exported_model_gives_image_by_image(named, results, name):
    config, task = named[name]
    found, _, tensors, _ = results[name]
    model = model_of(task.model, {key: torch.tensor(each) for key, each in tensors.items()})
    wanted = expected(model.eval(), config)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-4)
    assert found["validation/time_s"] > 0.0


@pytest.mark.parametrize("name", NAMES)
def test_the_best_model_is_the_one_that_was_measured(named, results, name):
    found, events, tensors, _ = results[name]
    made = Exported.best(named[name][1].folder)
    loaded = weights.load(made.folder)
    for key, each in loaded.state_dict().items():
        np.testing.assert_array_equal(each.numpy(), tensors[key])
    assert made.figures["loss"] == found["validation/loss"]
    (event,) = events
    assert (event.kind, event.step) == ("best", 1)
    assert f"validation/loss {found['validation/loss']:.6g}" in event.text


def test_the_latest_weights_would_have_been_others(results):
    for _, _, averaged, latest in results.values():
        assert not all(np.allclose(averaged[key], latest[key]) for key in latest)


def standing(*, step: int, kept: tuple[int, ...] = ()) -> Standing:
    new = Standing.of(VALIDATION, {})
    return replace(new, best=0.5, best_step=step, figures={"loss": 0.5}, kept=kept)


def test_models_that_no_checkpoint_speaks_of_are_deleted(named, tmp_path):
    task = named["stage 2"][1]
    model = build(task.model)
    for step, kept in ((10, ()), (20, ()), (30, (20,)), (40, (20, 30))):
        write_best(
            str(tmp_path),
            standing(step=step, kept=kept),
            tensors=model.state_dict(),
            config=task.model,
        )
    files = Location.of(str(tmp_path)).child(FOLDER).files()
    folders = {file.split("/")[0] for file in files} - {RECORD}
    assert folders == {"step-0000020", "step-0000030", "step-0000040"}
    assert read_best(str(tmp_path)).step == 40
    weights.load(model_folder(str(tmp_path), 20).path)


def test_a_best_model_that_is_gone_is_not_believed(named, tmp_path):
    def resumed(gone: bool) -> Standing:
        _, task = named["stage 2"]
        run = str(tmp_path / ("gone" if gone else "there"))
        write_best(
            run,
            standing(step=10),
            tensors=build(task.model).state_dict(),
            config=task.model,
        )
        if gone:
            forget(run, besides=())
        told = standing(step=10).as_json()
        return in_small_world(resume, (replace(task, folder=run), told), num_workers=1, threads=1)

    assert resumed(False) == standing(step=10)
    assert resumed(True) == Standing.of(VALIDATION, {})
    assert not Location.of(str(tmp_path / "gone")).child(FOLDER).child(RECORD).exists()


def resume(given: tuple[Assignment, dict[str, Any]], rank: int) -> Standing:
    task, told = given
    validator = validator_alone(task, advances=lambda: None)
    validator.resume(told)
    return validator.standing


def validator_alone(task: Assignment, *, advances: Callable[[], None]) -> Validator:
    """Of the only worker."""
    return Validator(
        task.validation,
        task=task,
        dataset=open_dataset(task.dataset),
        seat=Seat(),
        crew=form_crew(task.parallel),
        device=torch.device("cpu"),
        advances=advances,
    )


def test_a_worker_that_validates_for_long_shows_that_it_gets_on(named):
    _, task = named["stage 2"]
    few = replace(task, batch=replace(task.batch, images_per_step=1, accumulation=1))
    num_images = len(open_dataset(task.dataset).images("test"))
    assert num_images > 1
    assert in_small_world(advances, few, num_workers=1, threads=1) == num_images


def advances(task: Assignment, rank: int) -> int:
    seen: list[None] = []
    validator = validator_alone(task, advances=lambda: seen.append(None))
    validator.figures(build(task.model).eval())
    return len(seen)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": "train"}, "validation.split 'train' is what is trained on"),
        ({"split": "validation"}, "validation: split 'validation' has no images to look at"),
        ({"figure": "acuracy"}, "'acuracy': this model has loss, accuracy, balanced_accuracy"),
        ({"figure": "auroc", "images": 1}, "'auroc' needs images of every class"),
    ],
)
def test_what_cannot_be_measured_is_refused(named, change, says):
    config, task = named["stage 2"]
    with pytest.raises(ValueError, match=says):
        require_validation(
            replace(VALIDATION, **change),
            model=task.model,
            dataset=open_dataset(config.dataset),
            training_split="train",
        )
