"""`farreach generate`: the model's own images, in files that people and other jobs read."""

import csv
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from fit_model import weights
from fit_model.canvas import Canvas, canvas_of
from fit_model.choosing import DecodingConfig
from fit_model.groups import Places
from fit_model.model import Model
from fit_model.models import build
from fit_model.samplers import SamplingConfig
from jobs import registry, tracking
from jobs.batches import image_seed
from jobs.contact_sheet import PAPER, contact_sheet, sheet_rows
from jobs.generate import GenerateConfig, main, sheet
from jobs.orders import CompleteConfig, order_of
from jobs.pixel_files import decoded, encoded, suffix_of
from jobs.runner import exit_codes
from jobs.settings import load
from jobs.train import model_config
from jobs.whole_folder import drafted, require_new
from jobs.workers import WorkersConfig
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.storage import Location
from tests.fit_model.examples import randomize
from tests.jobs.small_generating import FACES, LEVELS, SIDE_PX, train_config, write_dataset
from tests.pipeline.conftest import s3, s3_endpoint  # noqa: F401  # fixtures
from tests.pipeline.scenes import in_process

DIFFUSION = SamplingConfig(steps=3, guidance=0.5)
DECODING = DecodingConfig(top_k=5)
REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "jobs/configs/generate").glob("*.yaml"))
SAMPLING: dict[str, Any] = {"diffusion": DIFFUSION, "autoregressive": DECODING}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("generating"))


def made_model(dataset: str, face: str, *, label: str | None = "kind", **changes) -> Model:
    config = train_config(dataset, face, label=label)
    config = replace(config, model=replace(config.model, **changes))
    model = build(model_config(config, open_dataset(dataset)))
    return randomize(model).eval()


@pytest.fixture(scope="module", params=FACES)
def model(request, dataset) -> Model:
    return made_model(dataset, request.param)


def settings(**changes) -> GenerateConfig:
    return replace(GenerateConfig(model="m", output="made", num_images=2), **changes)


def sampled(model: Model, /, **changes) -> GenerateConfig:
    kind = model.config.face.kind
    return settings(**{kind: SAMPLING[kind]} | changes)


def drawn(model: Model, config: GenerateConfig, numbers: list[int]) -> list[np.ndarray]:
    """What a worker makes of these numbers."""
    files = order_of(model, config).request.open()(numbers)
    return [decoded(content) for content in files.to_pylist()]


def alone(model: Model, *, number: int, label: int | None, rows: int, columns: int) -> np.ndarray:
    """One image from the model itself, its groups put together by hand."""
    place = torch.arange(rows * columns)
    places = Places(
        image=torch.zeros_like(place),
        row=place // columns,
        column=place % columns,
        grid_rows=torch.tensor([rows]),
        grid_columns=torch.tensor([columns]),
    )
    with torch.inference_mode():
        groups = model.generate(
            places,
            targets=None if label is None else torch.tensor([label]),
            seeds=torch.tensor([image_seed(0, step=0, image=number)]),
            sampling=SAMPLING[model.config.face.kind],
        ).numpy()
    lines = [np.hstack(groups[row * columns : (row + 1) * columns]) for row in range(rows)]
    return np.vstack(lines)


def test_images_are_the_models_own_whoever_shares_their_batch(model):
    config = sampled(model, num_images=2, grid_rows=2, grid_columns=3)
    numbers = [3, 0, 2, 1]
    together = drawn(model, config, numbers)
    for number, picture in zip(numbers, together, strict=True):
        expected = alone(model, number=number, label=number % 2, rows=2, columns=3)
        assert picture.shape == (2 * SIDE_PX, 3 * SIDE_PX, 1)
        np.testing.assert_array_equal(picture, expected)
    assert len({picture.tobytes() for picture in together}) == 4


def test_more_images_leave_the_first_ones_as_they_were(model):
    few, more = (order_of(model, sampled(model, num_images=count)) for count in (2, 5))
    assert more.labels[:4] == few.labels == ("bright", "dark", "bright", "dark")
    assert few.request.open()([3]) == more.request.open()([3])


def test_another_seed_makes_other_images(model):
    one, other = (drawn(model, sampled(model, seed=seed), [0])[0] for seed in (0, 1))
    assert (one != other).any()


def test_a_model_without_labels_makes_as_many_images_as_asked(dataset):
    model = made_model(dataset, "autoregressive", label=None)
    order = order_of(model, sampled(model, num_images=3))
    assert (order.num_images, order.labels) == (3, ())
    np.testing.assert_array_equal(
        drawn(model, sampled(model), [1])[0], alone(model, number=1, label=None, rows=1, columns=1)
    )


@pytest.mark.parametrize("order", ["snake", "raster"])
def test_completed_images_begin_as_those_of_the_dataset(dataset, order):
    model = made_model(dataset, "autoregressive", order=order)
    complete = CompleteConfig(dataset=dataset, split="train", patches=2)
    config = sampled(model, num_images=4, complete=complete)
    found = order_of(model, config)
    assert found.begun == ("train-00", "train-01", "train-02", "train-03")
    assert found.labels == ("dark", "bright", "dark", "bright")
    numbers = [2, 0, 3, 1]
    made = drawn(model, config, numbers)
    records = open_dataset(dataset).images("train")
    changed = 0
    for picture, number in zip(made, numbers, strict=True):
        with rasterio.open(records[number].uri) as source:
            given = source.read(1)
        # two patches of 4 px, the first of every image: half of the upper left group's first row
        assert picture.shape == (*given.shape, 1)
        np.testing.assert_array_equal(picture[:4, :8, 0], given[:4, :8])
        changed += (picture[4:, :, 0] != given[4:]).sum()
    assert changed > 100


@pytest.mark.parametrize(
    ("face", "change", "says"),
    [
        ("diffusion", {"classes": ("bright", "drak")}, "no class 'drak'; the model's kind: bright"),
        ("diffusion", {"classes": ("dark", "dark")}, "classes dark, dark: name each once"),
        ("diffusion", {"autoregressive": DecodingConfig(top_p=0.5)}, "autoregressive.top_p is for"),
        ("autoregressive", {"diffusion": SamplingConfig(steps=9)}, "begin with autoregressive."),
        ("diffusion", {"complete": CompleteConfig(dataset="d", patches=1)}, "only autoregressive"),
    ],
)
def test_what_a_model_cannot_do_is_refused(dataset, face, change, says):
    with pytest.raises(ValueError, match=says):
        order_of(made_model(dataset, face), settings(**change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ("dark",)}, "trained without labels; leave classes out"),
        ({"diffusion": SamplingConfig(guidance=2.0)}, "guidance 2 needs labels"),
    ],
)
def test_labels_are_refused_by_a_model_that_knows_none(dataset, change, says):
    with pytest.raises(ValueError, match=says):
        order_of(made_model(dataset, "diffusion", label=None), settings(**change))


@pytest.mark.parametrize(
    ("split", "patches", "says"),
    [
        ("train", 4, "patches 4 leaves nothing to draw: image 'train-00' has 4 patches"),
        ("tset", 1, "split 'tset' has no images"),
    ],
)
def test_a_completion_that_leaves_nothing_to_draw_is_refused(dataset, split, patches, says):
    complete = CompleteConfig(dataset=dataset, split=split, patches=patches)
    with pytest.raises(ValueError, match=says):
        order_of(made_model(dataset, "autoregressive"), settings(complete=complete))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_committed_settings_load_and_say_what_to_type(path):
    assert load(GenerateConfig, path).output == f"made/{path.stem}"
    assert f"farreach generate {path.relative_to(REPOSITORY)}" in path.read_text()


@pytest.mark.parametrize(
    "change",
    [{"num_images": 0}, {"grid_rows": 0}, {"images_per_batch": -1}, {"seed": -1}],
)
def test_counts_below_one_are_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} {value} must"):
        settings(**change)


def test_images_are_as_large_as_most_of_training_unless_asked_otherwise(dataset):
    # of the nine training images three consist of one group, and two each of 2, 2 and 4
    config = made_model(dataset, "diffusion").config
    assert canvas_of(config) == Canvas(rows=1, columns=1)
    wide = replace(config, head=replace(config.head, grid_rows=2, grid_columns=3))
    assert canvas_of(wide) == Canvas(rows=2, columns=3)
    assert canvas_of(wide, columns=7) == Canvas(rows=2, columns=7)


@pytest.mark.parametrize(("declared", "asked"), [(10**9, None), (1, 10**9), (2**15 + 1, 2**10)])
def test_an_image_of_more_pixels_than_anybody_holds_is_refused(dataset, declared, asked):
    config = made_model(dataset, "diffusion").config
    config = replace(config, head=replace(config.head, grid_rows=2**10, grid_columns=declared))
    with pytest.raises(
        ValueError, match=r"make an image of \d+ pixels, and at most 2147483648 are"
    ):
        canvas_of(config, rows=asked)
    # 2^31 pixels in groups of 8 x 8
    assert canvas_of(config, columns=2**15) == Canvas(rows=2**10, columns=2**15)


@pytest.mark.parametrize(("face", "num_groups"), [("diffusion", 6), ("autoregressive", 24)])
def test_a_model_that_knows_one_number_of_groups_makes_images_of_that(dataset, face, num_groups):
    # a group holds 2 x 2 patches, each of which an autoregressive model counts
    model = made_model(dataset, face, num_groups=num_groups, latent_position="learned")
    assert canvas_of(model.config, rows=2, columns=3) == Canvas(rows=2, columns=3)
    with pytest.raises(ValueError, match="images of 6 groups, and 2 x 2 are not as many"):
        canvas_of(model.config, rows=2, columns=2)


@pytest.mark.parametrize(
    ("dtype", "bands", "suffix"),
    [("uint8", 1, ".png"), ("uint8", 3, ".png"), ("uint16", 1, ".png"), ("uint16", 4, ".tif"),
     ("float32", 1, ".tif"), ("int16", 2, ".tif")],
)  # fmt: skip
def test_files_hold_the_values_that_were_made(tmp_path, dtype, bands, suffix):
    pixels = np.random.default_rng(0).integers(0, 250, (5, 7, bands)).astype(dtype)
    assert suffix_of(dtype=dtype, bands=bands) == suffix
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(pixels))
    np.testing.assert_array_equal(decoded(path.read_bytes()), pixels)
    if suffix == ".png":
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels.squeeze())
    else:
        with pytest.warns(NotGeoreferencedWarning), rasterio.open(path) as source:
            np.testing.assert_array_equal(source.read().transpose(1, 2, 0), pixels)


def test_a_contact_sheet_stretches_and_enlarges_what_is_made():
    dark, bright = (np.full((8, 8, 1), value, np.uint16) for value in (100, 300))
    shown = contact_sheet([[dark, bright], [bright]], pixel_range=(100.0, 500.0))
    assert shown.shape == (2 * 68 + 4, 2 * 68 + 4, 1)
    assert shown.dtype == np.uint8
    assert (shown[4:68, 4:68] == 0).all()
    assert (shown[4:68, 72:136] == 128).all()
    assert (shown[72:136, 72:136] == PAPER).all()
    wide = contact_sheet([[np.full((10, 3000, 4), 255, np.uint8)]], pixel_range=(0.0, 255.0))
    assert max(wide.shape) <= 256 + 8
    assert wide.shape[2] == 3


def test_a_contact_sheet_of_large_pictures_holds_one_of_them_at_a_time(dataset, tmp_path):
    order = order_of(made_model(dataset, "diffusion"), settings(num_images=4))
    picture = np.arange(2**22, dtype=np.uint8).reshape(2048, 2048, 1) % LEVELS
    for number in range(order.num_images):
        (tmp_path / f"{number:05d}.png").write_bytes(encoded(picture))
    tracemalloc.start()
    content = sheet(order, tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # of eight pictures; stretched at its full size one of them takes eight times as much
    assert picture.nbytes < most < 2 * picture.nbytes
    shown = np.round(picture[::8, ::8, 0] / (LEVELS - 1) * 255)
    np.testing.assert_array_equal(decoded(content)[4:260, 4:260, 0], shown)


def test_a_contact_sheet_shows_every_class_in_rows_of_its_own():
    assert sheet_rows(["a", "b"] * 2) == [[0, 2], [1, 3]]
    many = sheet_rows([str(number % 3) for number in range(600)])
    assert sum(map(len, many)) == 99
    assert max(map(len, many)) == 10
    assert all(len({number % 3 for number in row}) == 1 for row in many)


def test_a_folder_is_whole_or_not_there(tmp_path):
    place = Location.of(str(tmp_path / "deep" / "made"))
    with pytest.raises(ZeroDivisionError), drafted(place, last="last") as draft:
        (draft / "file").write_text(str(1 / 0))
    assert list((tmp_path / "deep").iterdir()) == []
    with drafted(place, last="last") as draft:
        (draft / "file").write_text("x")
        assert not (tmp_path / "deep" / "made").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["made"]
    with pytest.raises(ValueError, match="made exists: choose another output, or delete it"):
        require_new(place, name="output")


@pytest.mark.usefixtures("s3")
def test_in_a_bucket_the_file_that_makes_it_whole_comes_last(caplog):
    place = Location.of("s3://scans/made")
    with caplog.at_level("INFO", logger="werkzeug"), drafted(place, last="first") as draft:
        (draft / "images").mkdir()
        for name in ("first", "images/00000.png", "labels.csv"):
            (draft / name).write_text(name)
    sent = [each.getMessage() for each in caplog.records if "PUT" in each.getMessage()]
    assert "/scans/made/first" in sent[-1]
    assert place.files() == ["first", "images/00000.png", "labels.csv"]
    assert place.child("images/00000.png").read_bytes() == b"images/00000.png"
    with pytest.raises(ValueError, match="s3://scans/made exists"):
        require_new(place, name="output")


def register(model: Model, store: Path) -> registry.Registered:
    weights.save(model, store / "trained")
    with tracking.open_run("tests") as run:
        pass
    registry.register(
        run.run_id,
        store / "trained",
        "maker",
        pixel_dtype="uint8",
        alias="challenger",
        metrics={},
        dataset_digest="d" * 64,
        card="# Maker",
    )
    return registry.show("maker@challenger")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_images_of_a_registered_model_are_files_a_grid_and_a_run(store, dataset, capsys):
    model = made_model(dataset, "diffusion")
    registered = register(model, store)
    config = sampled(
        model,
        model="maker@challenger",
        num_images=3,
        images_per_batch=2,
        grid_columns=2,
        experiment="making",
        workers=WorkersConfig(num_workers=2),
    )
    main(config)
    said = capsys.readouterr().out
    assert "6 image(s) in " in said
    assert "next: farreach preprocess sources=" in said

    made = store / "made"
    assert sorted(each.name for each in made.iterdir()) == [
        "grid.png", "images", "labels.csv", "settings.json"
    ]  # fmt: skip
    for number in range(6):
        seen = np.asarray(Image.open(made / "images" / f"{number:05d}.png"))
        expected = alone(model, number=number, label=number % 2, rows=1, columns=2)
        np.testing.assert_array_equal(seen, expected[:, :, 0])
        assert seen.max() < LEVELS
    with (made / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"{number:05d}" for number in range(6)]
    assert [row["label"] for row in rows] == ["bright", "dark"] * 3

    facts = json.loads((made / "settings.json").read_text())
    assert facts["settings"]["diffusion"]["guidance"] == 0.5
    assert "autoregressive" not in facts["settings"]
    assert facts["grid"] == [1, 2]
    assert facts["model"]["run_id"] == registered.run_id
    (run,) = mlflow.search_runs(experiment_names=["making"], output_format="list")
    assert run.info.run_name == "generate maker@challenger"
    assert run.info.status == "FINISHED"
    assert run.data.tags["source_run_id"] == registered.run_id
    assert run.data.tags["source_version"] == "1"
    assert run.data.tags["model_digest"] == facts["model"]["digest"]
    assert run.data.params["diffusion.steps"] == "3"
    for name in ("grid.png", "settings.json"):
        kept = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{name}")
        assert Path(kept).read_bytes() == (made / name).read_bytes()

    # neither workers nor batches change what is made, and a folder does as well as a name
    again = replace(
        config, model=str(store / "trained"), output="again", images_per_batch=32,
        workers=WorkersConfig(),
    )  # fmt: skip
    main(again)
    assert contents(store / "again" / "images") == contents(made / "images")
    with pytest.raises(SystemExit) as caught, exit_codes("generate"):
        main(again)
    assert caught.value.code == 2
    assert "again exists: choose another output" in capsys.readouterr().err


def test_what_was_made_can_be_preprocessed(store, dataset):
    model = made_model(dataset, "autoregressive")
    images = store / "made" / "images"
    images.mkdir(parents=True)
    order = order_of(model, sampled(model))
    for number, content in enumerate(order.request.open()([0, 1, 2, 3]).to_pylist()):
        (images / f"{number:05d}.png").write_bytes(content)
    preprocess(
        PreprocessConfig(
            sources=str(images),
            output=str(store / "dataset"),
            grouping=GroupingConfig(group_side_px=SIDE_PX, patch_px=4),
        ),
        run_stage=in_process,
    )
    stored = open_dataset(str(store / "dataset"))
    for record, number in zip(stored.images(), range(4), strict=True):
        expected = alone(model, number=number, label=number % 2, rows=1, columns=1)
        np.testing.assert_array_equal(stored.read(record).pixels[0], expected)
