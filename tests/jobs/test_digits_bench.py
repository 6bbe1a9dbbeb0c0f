"""`farreach bench digits` is fair, goes on where it was, and claims no more than it saw."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs import digits_training
from jobs.cli import app
from jobs.digit_canvases import CanvasConfig, digits_of, held_out_canvases, training_canvases
from jobs.digits_bench import DigitsBench, final_run
from jobs.digits_models import OPERATORS, SizeConfig, compared
from jobs.digits_picture import apart
from jobs.digits_results import Results
from jobs.digits_training import Outcome, RecipeConfig, Run, Setup, train
from jobs.digits_verdict import score, sentence
from tests import digits

SETUP = Setup(
    canvas=CanvasConfig(side_px=16, scraps=1),
    size=SizeConfig(width=8, heads=2, group_px=8, latents_per_group=1, layers="(1)1", depth=1),
    recipe=RecipeConfig(steps=2, batch=4, learning_rates=(1e-3, 2e-3), places=1),
)
TINY = [
    "canvas.side_px=16", "size.width=8", "size.heads=2", "size.group_px=8", "size.depth=1",
    "size.layers=(1)1", "recipe.steps=2", "recipe.batch=4", "recipe.places=1", "cost_rounds=1",
    "seeds=[0,1]", "operators=[softmax,bixt]", "recipe.learning_rates=[1e-3]",
]  # fmt: skip


def bench(folder, *settings):
    return CliRunner().invoke(app, ["bench", "digits", f"output={folder}", *TINY, *settings])


def as_set(images):
    return {image.tobytes() for image in images}


def test_no_held_out_digit_is_in_training():
    held_out = as_set(digits.part("test").pixels)
    assert as_set(digits_of("test").images) == held_out
    assert not as_set(digits_of("training").images) & (
        held_out | as_set(digits_of("validation").images)
    )
    assert sum(len(digits_of(part).kinds) for part in ("training", "validation", "test")) == 1797


@pytest.mark.parametrize("part", ["training", "test"])
def test_the_label_is_the_upper_of_two_digits_of_the_same_part(part):
    config = CanvasConfig(side_px=32, step_px=8, scraps=0)
    if part == "training":
        canvases = training_canvases(config, seed=0, step=5, count=200)
    else:
        canvases = held_out_canvases(config, "test", places=1)
    own = digits_of(part)
    kinds = {image.tobytes(): kind for image, kind in zip(own.images, own.kinds, strict=True)}
    cells = canvases.pixels.reshape(-1, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4)
    for rows, label in zip(cells, canvases.labels, strict=True):
        row, column = np.nonzero(rows.any((2, 3)))
        assert len(row) == 2
        assert row[0] < row[1]
        assert all(cell.tobytes() in kinds for cell in rows[row, column])
        assert kinds[rows[row[0], column[0]].tobytes()] == label


def test_every_operator_sees_the_same_canvases_in_the_same_order(monkeypatch):
    def seen(body, operator, seed):
        canvases = []

        class Watched(digits_training.Trainer):
            def step(self, drawn, *, number):
                canvases.append(drawn.pixels.tobytes())
                return super().step(drawn, number=number)

        with monkeypatch.context() as patch:
            patch.setattr(digits_training, "Trainer", Watched)
            train(Run(body=body, operator=operator, seed=seed, learning_rate=1e-3), SETUP)
        return canvases

    first = seen("fit", "softmax", 0)
    assert len(set(first)) == SETUP.recipe.steps
    assert seen("fit", "fnet", 0) == seen("vix", "softmax", 0) == first
    assert not set(seen("fit", "softmax", 1)) & set(first)


def test_all_operators_have_a_model_of_the_same_width_in_every_body_they_fit():
    models = compared(("fit", "vix"), tuple(OPERATORS))
    assert len(models) == 2 * len(OPERATORS) - 1
    assert ("vix", "bixt") not in models
    for body, operator in models:
        model = Setup().model(body, operator)
        assert model.config.face.patch_px == 4
        assert model.head.norm.normalized_shape == (32,)


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n")
    found = bench(tmp_path)
    assert found.exit_code == 2
    assert "holds something else than runs of this bench: choose another output" in found.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["labels.csv"]


def test_a_bench_is_complete_and_is_not_run_twice(tmp_path):
    found = bench(tmp_path)
    assert found.exit_code == 0, found.output
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 2
    report = json.loads((tmp_path / "digits.json").read_text())
    names = [(model["body"], model["operator"]) for model in report["models"]]
    assert names == compared(("fit", "vix"), ("softmax", "bixt"))
    assert all(len(model["accuracies"]) == 2 for model in report["models"])
    assert all(model["tokens_per_s"] > 0 < model["peak_bytes"] for model in report["models"])
    assert (tmp_path / "digits.md").read_text().count("| softmax | ") == 2
    assert (tmp_path / "digits.png").stat().st_size > 10_000

    torn = "\n".join(lines)[:-20]
    (tmp_path / "results.jsonl").write_text(torn)
    again = bench(tmp_path)
    assert "1 of 1:" in again.output
    assert sorted((tmp_path / "results.jsonl").read_text().splitlines())[0][:40] in torn
    assert again.output.count(" of ") == 1 + again.output.count("binomial")

    before = (tmp_path / "results.jsonl").read_text()
    refused = bench(tmp_path, "recipe.steps=3")
    assert refused.exit_code == 2
    assert "have recipe.steps 2, not 3" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert (tmp_path / "results.jsonl").read_text() == before


def test_the_learning_rate_is_chosen_by_validation_and_not_by_the_test(tmp_path):
    config = DigitsBench(output=tmp_path, bodies=("fit",), operators=("softmax",))
    low, high = config.recipe.learning_rates
    results = Results(tmp_path, settings={})
    for rate, validation, test in ((low, 0.6, 0.9), (high, 0.7, 0.2)):
        run = Run(body="fit", operator="softmax", seed=0, learning_rate=rate)
        outcome = Outcome(
            run=run,
            validation=validation,
            test=test,
            training_loss=None,
            parameters=1,
            seconds=0.0,
        )
        results.add(outcome)
    assert final_run(config, results, "fit", "softmax", seed=2).learning_rate == high
    assert Results(tmp_path, settings={}).outcomes == results.outcomes


SOFTMAX = (0.70, 0.72, 0.74)


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((0.78, 0.79, 0.82), "better"),
        ((0.60, 0.63, 0.62), "worse"),
        ((0.71, 0.73, 0.75), "not distinguishable"),  # always better, by less than 360 digits tell
        ((0.70, 0.72, 0.98), "not distinguishable"),  # better by much, in one seed alone
        ((0.74, 0.72, 0.70), "not distinguishable"),
    ],
)
def test_only_differences_that_seeds_and_digits_both_carry_count(accuracies, verdict):
    found = score(
        "fit",
        "tssa",
        learning_rate=1e-3,
        accuracies=accuracies,
        reference=SOFTMAX,
        num_digits=360,
    )
    assert found.verdict == verdict
    kinds = {"better": 0, "not distinguishable": 1, "worse": 2}
    parts = sentence("fit", [found]).split("; ")
    assert ["tssa" in part for part in parts] == [kinds[verdict] == number for number in range(3)]


def test_the_difference_needed_is_that_of_the_formula():
    found = score(
        "fit",
        "tssa",
        learning_rate=1e-3,
        accuracies=(0.8, 0.9),
        reference=(0.5, 0.5),
        num_digits=10_000,
    )
    assert found.difference == pytest.approx(0.35)
    assert found.needed == pytest.approx(2 * np.std([0.3, 0.4], ddof=1) / np.sqrt(2))
    assert found.mean == pytest.approx(0.85)


def test_labels_keep_apart_and_in_order():
    heights = apart(np.array([0.1, 0.1, 0.12, 0.5, 0.99, 1.0, 1.0]), least=0.05)
    assert (np.diff(heights) >= 0.05 - 1e-9).all()
    assert heights[-1] <= 1.0
    assert heights[3] == 0.5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("operators=[tssa]", "operators lacks 'softmax'"),
        ("operators=[softmax,sofmax]", "did you mean 'softmax'"),
        ("seeds=[0,0]", "seeds is [0, 0]: give at least one, and each once"),
        ("bodies=[vit]", "'vit'"),
        ("size.group_px=12", "canvas.side_px 16 is no multiple of size.group_px 12"),
        ("size.heads=3", "fit with softmax: width 8 is no multiple of its 3 heads"),
        ("canvas.step_px=3", "step_px 3 divides not both"),
        ("recipe.learning_rates=[0]", "learning_rates is [0.0]"),
        ("operators=[softmax,linformer@rank=x]", "linformer@rank=x"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(setting, said, tmp_path):
    found = bench(tmp_path / "new", setting)
    assert found.exit_code == 2
    assert said in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new" / "results.jsonl").exists()
