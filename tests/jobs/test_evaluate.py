"""`farreach evaluate`: scikit-learn's figures of the model's own outputs, in the model's run."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from sklearn import metrics

from fit_model import weights
from fit_model.models import build
from jobs import registry
from jobs.batches import image_seed
from jobs.evaluate import EvaluateConfig, main
from jobs.runner import exit_codes
from jobs.targets import RegressTarget
from jobs.train import main as train
from jobs.train import model_config
from jobs.workers import WorkersConfig
from pipeline.dataset import open_dataset
from tests.fit_model.examples import randomize
from tests.jobs import small_generating
from tests.jobs.small_training import one_image, train_config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
PNG = b"\x89PNG\r\n"


def outputs(folder: str, dataset: str) -> tuple[np.ndarray, list]:
    """The model's raw outputs image by image, and the images."""
    model, stored = weights.load(folder), open_dataset(dataset)
    records = stored.images("test")
    with torch.inference_mode():
        rows = [model(one_image(stored, record))[0].double().numpy() for record in records]
    return np.array(rows), records


def picture(run_id: str, name: str) -> bytes:
    return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{name}")).read_bytes()


def evaluate_config(trained, **changes) -> EvaluateConfig:
    config = EvaluateConfig(
        model="tiny@challenger",
        dataset=trained.config.dataset,
        images_per_batch=2,
        experiment="elsewhere",
        workers=WorkersConfig(num_workers=2),
    )
    return replace(config, **changes)


def test_scores_of_a_registered_model_are_scikit_learns_and_go_into_its_run(trained):
    scores = main(evaluate_config(trained))
    logits, records = outputs(trained.result.model_folder, trained.config.dataset)
    truth = [["bright", "dark"].index(record.labels["kind"]) for record in records]
    predicted = logits.argmax(1)
    shares = torch.from_numpy(logits).softmax(1).numpy()
    expected = {
        "test/loss": metrics.log_loss(truth, shares, labels=[0, 1]),
        "test/accuracy": metrics.accuracy_score(truth, predicted),
        "test/balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "test/auroc": metrics.roc_auc_score(truth, logits[:, 1] - logits[:, 0]),
    }
    assert scores == pytest.approx(expected)
    run = trained.run()
    assert run.info.status == "FINISHED"
    assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected)
    version = registry.show("tiny@challenger")
    assert {name: version.metrics[name] for name in expected} == pytest.approx(expected)
    assert [step for step, _ in trained.history("test/accuracy")] == [0]
    assert picture(trained.result.run_id, "test/confusion.png").startswith(PNG)


def test_an_evaluation_leaves_the_trainings_own_record_as_it_was(trained):
    names = set(trained.run().data.params)
    steps = [step for step, _ in trained.history("loss")]
    assert steps == list(range(1, trained.config.total_steps + 1))
    assert "images_per_batch" not in names


def test_a_model_from_a_folder_gets_a_run_of_its_own(trained):
    config = evaluate_config(
        trained, model=trained.result.model_folder, split="train", workers=WorkersConfig()
    )
    before = trained.run().data.metrics
    scores = main(config)
    (run,) = mlflow.search_runs(experiment_names=["elsewhere"], output_format="list")
    assert run.info.run_id != trained.result.run_id
    assert {name: run.data.metrics[name] for name in scores} == scores
    assert trained.run().data.metrics == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "tiny@champion"}, "no model 'tiny@champion'"),
        ({"model": "nowhere/else"}, "'nowhere/else' is no model"),
        ({"split": "validation"}, "split 'validation' has no images"),
        ({"workers": WorkersConfig(num_workers=9)}, "9 workers of 1 CPU were asked for"),
    ],
)
def test_mistakes_are_one_line(trained, capsys, change, says):
    with pytest.raises(SystemExit) as caught, exit_codes("evaluate"):
        main(evaluate_config(trained, **change))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line


def test_numbers_are_learned_and_their_errors_measured_in_their_own_units(
    tiny_dataset, store, monkeypatch
):
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    trained = train(
        train_config(
            tiny_dataset,
            name="numbers",
            storage_path=str(store / "runs"),
            target=RegressTarget(labels=("amount",)),
            register_as="numbers",
            workers=WorkersConfig(num_workers=1),
        )
    )
    config = EvaluateConfig(model="numbers/1", dataset=tiny_dataset)
    scores = main(config)
    raw, records = outputs(trained.model_folder, tiny_dataset)
    seen = [each.labels["amount"] for each in open_dataset(tiny_dataset).images("train")]
    seen = np.array(seen)[[bool(r.groups) for r in open_dataset(tiny_dataset).images("train")]]
    predicted = raw[:, 0] * seen.std() + seen.mean()
    truth = [record.labels["amount"] for record in records]
    assert scores == pytest.approx(
        {
            "test/loss": metrics.mean_squared_error(truth, predicted) / seen.std() ** 2,
            "test/amount/mae": metrics.mean_absolute_error(truth, predicted),
            "test/amount/rmse": metrics.root_mean_squared_error(truth, predicted),
            "test/amount/r2": metrics.r2_score(truth, predicted),
        },
        rel=1e-5,
    )
    assert picture(trained.run_id, "test/amount.png").startswith(PNG)


def per_image(model, dataset: str) -> np.ndarray:
    """The model's measures of one test image after the other."""
    stored = open_dataset(dataset)
    rows = []
    for number, record in enumerate(stored.images("test")):
        target = torch.tensor([model.config.head.classes.index(record.labels["kind"])])
        seeds = torch.tensor([image_seed(0, step=0, image=number)])
        with torch.inference_mode():
            found = model.measures(small_generating.one_image(stored, record), target, seeds=seeds)
        rows.append(found[0].double().numpy())
    return np.array(rows)


def evaluated(folder: Path, face: str) -> tuple[dict[str, float], np.ndarray, str]:
    """Scores of an untrained decoder, what they are made from, and the run they are in."""
    dataset = small_generating.write_dataset(folder / "data")
    config = small_generating.train_config(dataset, face)
    model = randomize(build(model_config(config, open_dataset(dataset)))).eval()
    weights.save(model, folder / face)
    scores = main(
        EvaluateConfig(
            model=str(folder / face),
            dataset=dataset,
            images_per_batch=3,
            experiment=face,
            workers=WorkersConfig(num_workers=1),
        )
    )
    (run,) = mlflow.search_runs(experiment_names=[face], output_format="list")
    assert {name: run.data.metrics[name] for name in scores} == scores
    return scores, per_image(model, dataset), run.info.run_id


def test_a_diffusion_models_loss_is_measured_at_every_noise_level(store):
    scores, losses, run_id = evaluated(store, "diffusion")
    expected = {"test/loss": losses.mean(), "test/denoising_loss": losses.mean()}
    expected |= {f"test/denoising_loss/t0.{part}5": losses[:, part].mean() for part in range(10)}
    assert losses.shape == (4, 10)
    assert scores == pytest.approx(expected, rel=1e-5)
    assert picture(run_id, "test/denoising_loss.png").startswith(PNG)


def test_an_autoregressive_model_is_measured_in_bits_over_all_sub_pixels(store):
    scores, bits, run_id = evaluated(store, "autoregressive")
    pixels = np.array([height * width for height, width in small_generating.SIZES_PX])
    sizes = pixels[np.arange(9, 13) % 4]
    expected = (bits[:, 0] * sizes).sum() / sizes.sum()
    assert scores == {
        "test/loss": pytest.approx(bits.mean(), rel=1e-5),
        "test/bits_per_subpixel": pytest.approx(expected, rel=1e-5),
    }
    assert expected != pytest.approx(bits.mean(), rel=1e-3)
    assert picture(run_id, "test/bits_per_subpixel.png").startswith(PNG)
