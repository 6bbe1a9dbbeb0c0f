"""A registered version predicts what the folder it was made from predicts."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fit_model import weights
from fit_model.autoregressive import AutoregressiveConfig
from fit_model.canvas import Canvas
from fit_model.choosing import DecodingConfig
from fit_model.denoiser import DiffusionConfig
from fit_model.encoder import EncoderConfig
from fit_model.groups import GroupBatch, collate
from fit_model.heads import ClassifyConfig
from fit_model.model import Model, ModelConfig
from fit_model.models import build
from fit_model.pixels import GenerateConfig
from fit_model.samplers import SamplingConfig
from fit_model.stored_pixels import StoredPixels
from fit_model.tokens import InputConfig
from fit_model.trunk_config import TrunkConfig
from jobs import mlflow_store, models, registry, tracking
from jobs.errors import UserError
from jobs.model_signature import arrays_of
from tests.fit_model.examples import randomize


@pytest.fixture
def model() -> Model:
    torch.manual_seed(1)
    trunk = TrunkConfig(
        layers="(1)1", width=8, latent_width=8, latents_per_group=2, heads=2, latent_heads=2
    )
    config = ModelConfig(
        face=EncoderConfig(patch_px=4, trunk=trunk),
        input=InputConfig(bands=3, group_side_px=8, band_mean=(99.0,) * 3, band_std=(50.0,) * 3),
        head=ClassifyConfig(classes=("cat", "dog")),
    )
    return build(config).eval()


@pytest.fixture
def batch() -> GroupBatch:
    generator = np.random.default_rng(2)
    return collate([image(generator, rows, columns) for rows, columns in [(1, 1), (2, 3)]])


def image(generator, rows: int, columns: int) -> GroupBatch:
    row, column = (torch.from_numpy(each.ravel()) for each in np.indices((rows, columns)))
    full = torch.full((rows * columns,), 8)
    return GroupBatch(
        pixels=torch.from_numpy(generator.integers(0, 255, (rows * columns, 8, 8, 3), np.uint8)),
        image=torch.zeros(rows * columns, dtype=torch.int64),
        row=row,
        column=column,
        valid_height_px=full,
        valid_width_px=full,
        grid_rows=torch.tensor([rows]),
        grid_columns=torch.tensor([columns]),
        nodata=torch.tensor([float("nan")], dtype=torch.float64),
    )


def register(model: Model, folder: Path, **changes) -> int:
    weights.save(model, folder / "trained")
    with tracking.open_run("scenes") as run:
        pass
    name = changes.pop("name", "animals")
    given = {
        "pixel_dtype": "uint8",
        "alias": "champion",
        "metrics": {"accuracy": 0.75},
        "dataset_digest": "d" * 64,
        "card": "# Cats and dogs\n\nTrained on eight scenes.",
    }
    return registry.register(run.run_id, folder / "trained", name, **(given | changes))


def in_fresh_process(program: str, store: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "MLFLOW_TRACKING_URI": mlflow_store.tracking_uri()
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=store,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


FRESH = """
import json, mlflow, numpy
model = mlflow.pyfunc.load_model("models:/animals@champion")
given = dict(numpy.load("groups.npz"))
import fit_model  # the one that is stored with the weights
from fit_model.bounded.engine import Bounded
whole, cut, chunks = model.predict(given), [], Bounded.chunks
Bounded.chunks = lambda self, count: cut.append((self.config.offload, count)) or chunks(self, count)
bounded = model.predict(given, params={"groups_a_chunk": 2, "offload": "disk"})
print(json.dumps([fit_model.__file__, cut, whole.to_dict("list"), bounded.to_dict("list")]))
"""


def test_stored_pixels_become_arrays_like_any_others(batch):
    lazily = replace(batch, pixels=StoredPixels(list(batch.pixels.numpy())))
    found, wanted = arrays_of(lazily), arrays_of(batch)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_fresh_process_predicts_the_same_with_the_code_stored_beside_the_weights(
    store, model, batch
):
    assert register(model, store) == 1
    np.savez(store / "groups.npz", **arrays_of(batch))
    done = in_fresh_process(FRESH, store)
    code, cut, seen, bounded = json.loads(done.stdout)
    assert code.startswith(str(store / "mlruns"))
    assert list(seen) == ["cat", "dog"]
    with torch.inference_mode():
        expected = model.head.predictions(model(batch)).numpy()
    for found in (seen, bounded):
        np.testing.assert_allclose(np.array([found["cat"], found["dog"]]).T, expected, atol=1e-6)
    assert cut == [["disk", 1], ["disk", 6]]


def test_a_version_carries_its_lineage_and_nothing_that_is_pickled(store, model):
    register(model, store)
    found = mlflow.MlflowClient(mlflow_store.tracking_uri()).get_model_version("animals", "1")
    assert found.tags["dataset_digest"] == "d" * 64
    assert found.tags["farreach_version"]
    assert found.description.startswith("# Cats and dogs")
    seen = registry.show("animals")
    assert seen.metrics == {"accuracy": 0.75}
    assert seen.address == "animals@champion"
    assert seen.run_id == found.run_id
    files = [path for path in (store / "mlruns").rglob("*") if path.is_file()]
    assert {"model.safetensors", "config.json", "MODEL_CARD.md"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in {".pkl", ".pt", ".pth", ".pickle"}]
    signature = mlflow.models.get_model_info("models:/animals/1").signature
    assert signature.inputs.input_dict()["pixels"].shape == (-1, 8, 8, 3)
    assert [column.name for column in signature.outputs.inputs] == ["cat", "dog"]
    params = {each.name: each.default for each in signature.params.params}
    assert params == {"groups_a_chunk": None, "offload": None}


def test_a_pulled_folder_loads_to_the_same_outputs(store, model, batch):
    register(model, store)
    registry.pull("animals@champion", store / "deep" / "pulled")
    pulled = weights.load(store / "deep" / "pulled")
    with torch.inference_mode():
        torch.testing.assert_close(pulled(batch), model(batch), rtol=0, atol=0)
    assert sorted(path.name for path in (store / "deep").iterdir()) == ["pulled"]
    with pytest.raises(UserError, match="not empty"):
        registry.pull("animals@champion", store / "deep" / "pulled")


def test_a_damaged_version_leaves_no_folder(store, model):
    register(model, store)
    stored = next((store / "mlruns").rglob("model.safetensors"))
    stored.write_bytes(stored.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged"):
        registry.pull("animals", store / "pulled")
    assert not (store / "pulled").exists()
    assert not list(store.glob(".pull-*"))


def test_an_alias_moves_from_version_to_version(store, model):
    register(model, store)
    assert register(model, store, alias=None, metrics={"accuracy": 0.9}) == 2
    assert [(each.version, each.aliases) for each in registry.list_versions()] == [
        (2, ()),
        (1, ("champion",)),
    ]
    assert registry.promote("animals/2", "champion").aliases == ("champion",)
    assert registry.show("animals@champion").version == 2


def test_metrics_of_a_later_evaluation_join_those_of_the_version(store, model):
    register(model, store)
    registry.record_metrics(registry.show("animals"), {"auroc": 0.5})
    assert registry.show("animals").metrics == {"accuracy": 0.75, "auroc": 0.5}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("animal", "no model 'animal'; there are: animals"),
        ("animals@best", "no model 'animals@best'; animals has versions 1 and aliases champion"),
        ("animals/7", "no model 'animals/7'; animals has versions 1 and aliases champion"),
        ("animals/new", "'animals/new' is no model: write NAME@alias, NAME/version or NAME"),
        ("it's", '"it\'s" is no model name'),
    ],
)
def test_a_model_that_does_not_exist_is_refused_with_those_that_do(store, model, address, message):
    register(model, store)
    with pytest.raises(UserError) as caught:
        registry.show(address)
    assert message.strip('"') in str(caught.value).replace("'it's'", "it's\"")


def test_an_unfinished_folder_is_not_registered(store, model):
    weights.save(model, store / "broken")
    (store / "broken" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        registry.register(
            "0" * 32,
            store / "broken",
            "animals",
            pixel_dtype="uint8",
            alias=None,
            metrics={},
            dataset_digest="",
            card="",
        )
    assert registry.list_versions() == []


def test_a_run_that_registers_again_after_a_kill_gets_the_version_it_has(store, model):
    register(model, store)
    run_id = registry.show("animals").run_id
    again = registry.register(
        run_id,
        store / "trained",
        "animals",
        pixel_dtype="uint8",
        alias="again",
        metrics={},
        dataset_digest="d" * 64,
        card="",
    )
    assert again == 1
    assert registry.show("animals").aliases == ("again", "champion")


def test_more_models_than_a_page_holds_are_all_listed(store, monkeypatch):
    client = mlflow.MlflowClient(mlflow_store.require_tracking())
    for number in range(103):
        client.create_registered_model(f"m{number:03d}")
    with pytest.raises(UserError, match=r"m000, .*m102"):
        registry.show("absent")


MAKING = """
import json, mlflow, pandas
for name, columns, params in json.load(open("asked.json")):
    model = mlflow.pyfunc.load_model(f"models:/{name}/1")
    print(json.dumps(model.predict(pandas.DataFrame(columns), params=params).tolist()))
"""


def maker(face: DiffusionConfig | AutoregressiveConfig, classes: tuple[str, ...]) -> Model:
    config = ModelConfig(
        face=face,
        input=InputConfig(bands=2, group_side_px=8, band_mean=(5.0,) * 2, band_std=(3.0,) * 2),
        head=GenerateConfig(
            target="kind" if classes else None,
            classes=classes,
            pixel_dtype="uint8",
            pixel_low=0.0,
            pixel_high=16.0,
        ),
    )
    return randomize(build(config)).eval()


def makers() -> dict[str, Model]:
    trunk = TrunkConfig(
        layers="(1)1(1)", width=8, latent_width=8, latents_per_group=2, heads=2, latent_heads=2
    )
    return {
        "diffusion": maker(DiffusionConfig(patch_px=4, trunk=trunk), ("cat", "dog")),
        "autoregressive": maker(AutoregressiveConfig(patch_px=4, trunk=trunk, num_levels=17), ()),
    }


def test_a_fresh_process_makes_the_images_of_a_folder_that_was_pulled(store):
    seeds, params = [3, 2**40, 3], {"grid_columns": 2}
    asked = [
        ("diffusion", {"label": ["dog", "cat", "cat"], "seed": seeds}, params | {"steps": 3}),
        ("autoregressive", {"seed": seeds}, params | {"top_k": 4}),
    ]
    for name, model in makers().items():
        register(model, store, name=name)
    (store / "asked.json").write_text(json.dumps(asked))
    done = in_fresh_process(MAKING, store)
    sampling = {"steps": SamplingConfig(steps=3), "top_k": DecodingConfig(top_k=4)}
    for line, (name, columns, given) in zip(done.stdout.splitlines(), asked, strict=True):
        registry.pull(f"{name}@champion", store / name)
        model = weights.load(store / name)
        canvas = Canvas(rows=1, columns=2)
        targets = torch.tensor([1, 0, 0]) if "label" in columns else None
        with torch.inference_mode():
            groups = model.generate(
                canvas.places(3),
                targets=targets,
                seeds=torch.tensor(seeds),
                sampling=sampling[list(given)[-1]],
            )
        expected = canvas.pictures(groups).numpy()
        assert expected.shape == (3, 8, 16, 2)
        np.testing.assert_array_equal(np.array(json.loads(line)), expected)
        assert (expected[1] != expected[2]).any()


def test_the_signature_of_a_model_that_makes_images_says_what_it_can_be_told(store):
    for name, model in makers().items():
        register(model, store, name=name)
    read = {
        name: mlflow.models.get_model_info(f"models:/{name}/1").signature
        for name in ("diffusion", "autoregressive")
    }
    assert [column.name for column in read["diffusion"].inputs.inputs] == ["label", "seed"]
    assert [column.name for column in read["autoregressive"].inputs.inputs] == ["seed"]
    (pixels,) = read["diffusion"].outputs.inputs
    assert (pixels.type, pixels.shape) == (np.dtype("uint8"), (-1, -1, -1, 2))
    defaults = {each.name: each.default for each in read["diffusion"].params.params}
    assert defaults == {
        "grid_rows": None, "grid_columns": None, "sampler": "ddim", "steps": 100,
        "schedule": None, "guidance": 0.0, "time_shift": 0.0,
    }  # fmt: skip
    assert {each.name for each in read["autoregressive"].params.params} == {
        "grid_rows", "grid_columns", "temperature", "top_k", "top_p", "guidance"
    }  # fmt: skip
    shown = CliRunner().invoke(models.app, ["show", "diffusion@champion"])
    assert shown.exit_code == 0
    assert "diffusion version 1" in shown.stdout
