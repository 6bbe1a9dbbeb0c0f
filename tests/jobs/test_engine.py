"""Every way to spread and to cut a training gives the losses of one plain torch loop."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from fit_model.bounded.config import BoundedConfig
from fit_model.models import build
from fit_model.objective import PREFIX
from fit_model.parallel.config import ParallelConfig
from fit_model.vix import VixConfig
from jobs.engine import EngineConfig, OptimizerConfig, full_weights
from jobs.inbox import Inbox
from jobs.pulse import Heart
from jobs.settings import load
from jobs.targets import RegressTarget
from jobs.train import model_config
from jobs.train_config import TrainConfig
from jobs.worker import Loop
from jobs.workers import WorkersConfig
from pipeline.dataset import open_dataset
from tests.jobs.small_training import (
    OPTIMIZER,
    TRUNK,
    Plain,
    one_image,
    told,
    train_config,
    write_dataset,
    write_images,
)

pytestmark = [pytest.mark.ray]


def variant(
    dataset: str,
    stage: int,
    *,
    accumulation: int = 1,
    precision: str = "fp32",
    target: Any = None,
    **trunk: Any,
) -> TrainConfig:
    config = train_config(dataset)
    return replace(
        config,
        engine=EngineConfig(zero_stage=stage, precision=precision),
        batch=replace(config.batch, accumulation=accumulation),
        model=replace(config.model, trunk=replace(TRUNK, **trunk)),
        target=target or config.target,
    )


def variants(dataset: str) -> dict[str, TrainConfig]:
    numbers = RegressTarget(labels=("amount",))
    stage_2 = variant(dataset, 2)
    lamb = replace(stage_2.optimizer, kind="lamb", cosine_share=0.0, ema_decay=0.5)
    return {
        "lamb": replace(stage_2, optimizer=lamb),
        "stage 0": variant(dataset, 0),
        "stage 1, 3 micro-steps": variant(dataset, 1, accumulation=3),
        "stage 2": stage_2,
        "stage 2, 2 micro-steps": variant(dataset, 2, accumulation=2),
        "stage 2, layers recomputed": variant(dataset, 2, checkpointing="layer"),
        "stage 2, bounded, 2 micro-steps": replace(
            variant(dataset, 2, accumulation=2),
            bounded=BoundedConfig(groups_a_chunk=2, offload="disk"),
        ),
        "stage 3": variant(dataset, 3),
        "stage 2, numbers": variant(dataset, 2, target=numbers),
        "bf16, stage 0": variant(dataset, 0, precision="bf16"),
        "bf16, stage 2": variant(dataset, 2, precision="bf16"),
        "bf16, stage 3": variant(dataset, 3, precision="bf16"),
        "dropout": variant(dataset, 2, dropout=0.2, drop_path=0.2),
        "dropout, layers recomputed": variant(
            dataset, 2, dropout=0.2, drop_path=0.2, checkpointing="layer"
        ),
    }


VIX = VixConfig(
    patch_px=8,
    width=16,
    depth=2,
    heads=2,
    grid_rows=2,
    grid_columns=2,
    operator=("softmax", "linformer@rank=4"),
    stem="xcit",
    rotary="rotary_axial",
    pooling="class_attention",
    layer_scale=0.5,
)
ONE_GRID_PX = ((32, 32), (20, 25), (17, 31))


def vix_variants(dataset: str) -> dict[str, TrainConfig]:
    """A plain vision transformer on images of one grid, one of them with a group missing."""
    config = replace(train_config(dataset), model=VIX)
    return {
        "vix, stage 2": replace(config, engine=EngineConfig(zero_stage=2)),
        "vix, stage 3": replace(config, engine=EngineConfig(zero_stage=3)),
    }


SHARED = ("stage 2, shared", "stage 2, shared, bounded, 2 micro-steps", "stage 3, shared")
GRID = "stage 2, bounded, two sets of two"


def shared_variants(dataset: str) -> dict[str, TrainConfig]:
    """Both workers hold every image, some of its groups each."""
    stage_2 = replace(
        train_config(dataset), total_steps=10, parallel=ParallelConfig(groups=2, timeout_s=120.0)
    )
    bounded = replace(
        stage_2,
        bounded=BoundedConfig(groups_a_chunk=1, offload="disk"),
        batch=replace(stage_2.batch, accumulation=2),
    )
    stage_3 = replace(stage_2, engine=EngineConfig(zero_stage=3))
    return dict(zip(SHARED, (stage_2, bounded, stage_3), strict=True))


EXACT = [
    "stage 0", "stage 1, 3 micro-steps", "stage 2", "stage 2, 2 micro-steps",
    "stage 2, layers recomputed", "stage 2, bounded, 2 micro-steps", "stage 3", "stage 2, numbers",
]  # fmt: skip


def train_all(loop: dict[str, Any]) -> None:
    """One start of the workers for all variants; each has its own engine."""
    torch.set_num_threads(1)
    for name, task in loop["tasks"].items():
        worker = Loop(task, Heart(task.inbox, rank=0, num_workers=2, first_on_node=False))
        batches = worker.batches()
        for step in range(task.total_steps):
            worker.step(step, batches)
        weights = {
            key.removeprefix(PREFIX): each.numpy() for key, each in full_weights(worker.engine)
        }
        if worker.rank == 0:
            metrics = [dict(record.metrics) for record in worker.recent]
            ray.get(task.inbox.put.remote([(name, metrics, weights)]))


@pytest.fixture(scope="module")
def one_grid(tmp_path_factory) -> str:
    """Images of 2 x 2 groups each."""
    folder = tmp_path_factory.mktemp("one-grid")
    write_images(folder / "images", sizes_px=ONE_GRID_PX)
    return write_dataset(folder / "images", folder / "dataset")


@pytest.fixture(scope="module")
def results(ray_local, tiny_dataset, one_grid, tmp_path_factory) -> dict[str, Any]:
    named = variants(tiny_dataset) | vix_variants(one_grid) | shared_variants(one_grid)
    return trained_together(named, tmp_path_factory.mktemp("variants"), num_workers=2)


@pytest.fixture(scope="module")
def grid_results(ray_local, one_grid, tmp_path_factory) -> dict[str, Any]:
    """Two group sets of two workers, each with images of its own."""
    config = replace(shared_variants(one_grid)[SHARED[1]], workers=WorkersConfig(num_workers=4))
    return trained_together({GRID: config}, tmp_path_factory.mktemp("grid"), num_workers=4)


def trained_together(
    named: dict[str, TrainConfig], folder: Path, *, num_workers: int
) -> dict[str, Any]:
    """Figures of every step and the last weights, by name; the workers share two CPUs."""
    inbox = Inbox.remote()
    tasks = {name: told(config, folder / name, inbox=inbox) for name, config in named.items()}
    TorchTrainer(
        train_all,
        train_loop_config={"tasks": tasks},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, resources_per_worker={"CPU": 2 / num_workers}
        ),
        run_config=ray.train.RunConfig(name="together", storage_path=str(folder)),
    ).fit()
    sent = ray.get(inbox.drain.remote()).records
    return {name: (metrics, weights) for name, metrics, weights in sent}


def losses(results: dict[str, Any], name: str) -> list[float]:
    return [step["loss"] for step in results[name][0]]


def norms(results: dict[str, Any], name: str) -> list[float]:
    return [step["grad_norm"] for step in results[name][0]]


@pytest.fixture(scope="module")
def plain(tiny_dataset) -> dict[str, Any]:
    """The plain loop and its model, for classes and for numbers."""
    dataset = open_dataset(tiny_dataset)
    found = {}
    for name in ("stage 2", "stage 2, numbers"):
        config = variants(tiny_dataset)[name]
        loop = Plain(dataset=dataset, config=config, model_config=model_config(config, dataset))
        found[name] = loop, loop.train()
    return found


@pytest.fixture(scope="module")
def plain_shared(one_grid) -> Plain:
    config, dataset = shared_variants(one_grid)[SHARED[0]], open_dataset(one_grid)
    loop = Plain(dataset=dataset, config=config, model_config=model_config(config, dataset))
    loop.train()
    return loop


@pytest.mark.parametrize("name", EXACT)
def test_two_workers_learn_what_one_plain_loop_learns(results, plain, tiny_dataset, name):
    loop, expected = plain[name if name in plain else "stage 2"]
    # the losses of numbers come near 0, where a prediction is rounded to about 1e-7
    assert losses(results, name) == pytest.approx(loop.losses, rel=1e-5, abs=1e-7)
    if name != "stage 0":  # where DeepSpeed keeps it for itself
        assert norms(results, name) == pytest.approx(loop.norms, rel=1e-4)
    # the last step shows in the weights only; keys' biases get no gradient, only its rounding
    state = {key: torch.tensor(each) for key, each in results[name][1].items()}
    made = build(expected.config).eval()
    made.load_state_dict(state)
    dataset = open_dataset(tiny_dataset)
    for record in dataset.images("test"):
        image = one_image(dataset, record)
        with torch.inference_mode():
            torch.testing.assert_close(made(image), expected(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vix, stage 2", "vix, stage 3"])
def test_two_workers_learn_what_one_plain_loop_learns_with_a_plain_vision_transformer(
    results, one_grid, name
):
    config, dataset = vix_variants(one_grid)[name], open_dataset(one_grid)
    loop = Plain(dataset=dataset, config=config, model_config=model_config(config, dataset))
    loop.train()
    assert losses(results, name) == pytest.approx(loop.losses, rel=1e-5)
    assert norms(results, name) == pytest.approx(loop.norms, rel=1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_two_workers_that_share_every_image_learn_what_one_plain_loop_learns(
    results, plain_shared, name
):
    # ten steps bring the loss near 0, the logarithm of what float32 rounds to 6e-8 of 1
    assert losses(results, name) == pytest.approx(plain_shared.losses, rel=1e-5, abs=3e-7)
    assert norms(results, name) == pytest.approx(plain_shared.norms, rel=1e-4)


def test_four_workers_on_a_grid_learn_what_one_plain_loop_learns(grid_results, plain_shared):
    assert losses(grid_results, GRID) == pytest.approx(plain_shared.losses, rel=1e-5, abs=3e-7)
    assert norms(grid_results, GRID) == pytest.approx(plain_shared.norms, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_stays_near_and_keeps_finer_weights_than_it_computes_with(results, plain, stage):
    loop, _ = plain["stage 2"]
    name = f"bf16, stage {stage}"
    assert losses(results, name)[0] == pytest.approx(loop.losses[0], rel=0.01)
    assert norms(results, name)[0] == pytest.approx(loop.norms[0], rel=0.01)
    # the first small steps get lost in rounding when the master weights start out rounded, too
    assert losses(results, name) == pytest.approx(loop.losses, abs=0.15 * loop.losses[0])
    kernel = torch.tensor(results[name][1]["head.project.weight"])
    assert kernel.dtype == torch.float32
    assert not torch.equal(kernel, kernel.bfloat16().float())


def test_dropout_changes_the_losses_and_is_drawn_alike_when_layers_are_recomputed(results):
    dropped = losses(results, "dropout")
    assert np.isfinite(dropped).all()
    assert dropped != pytest.approx(losses(results, "stage 2"), rel=1e-3)
    recomputed = losses(results, "dropout, layers recomputed")
    assert recomputed == pytest.approx(dropped, rel=1e-6)


def test_lamb_and_a_share_of_the_cosine_are_what_is_asked_for(results):
    rates = [step["lr"] for step in results["lamb"][0]]
    warm = OPTIMIZER.warmup_steps
    assert rates[warm:] == [OPTIMIZER.lr] * (len(rates) - warm)
    assert losses(results, "lamb")[0] == pytest.approx(losses(results, "stage 2")[0], rel=1e-6)
    assert losses(results, "lamb")[-1] != pytest.approx(losses(results, "stage 2")[-1], rel=1e-4)


def test_every_step_reports_its_figures_with_units(results):
    for metrics, _ in results.values():
        for step in metrics:
            assert step["speed/megapixels_per_s"] > 0
            assert step["speed/tokens_per_s"] > 0
            assert 0 <= step["time/data_wait_share"] <= 1
            assert 0.05 < step["memory/peak_gb"] < 16
            assert "mfu" not in step


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 0.0}, "optimizer.lr is 0"),
        ({"eps": 0.0}, "optimizer.eps is 0"),
        ({"eps": -1e-8}, "optimizer.eps is -1e-08"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm is -1.0"),
        ({"lr": math.nan}, "optimizer.lr holds nan: every value must be finite"),
        ({"lr": math.inf}, "optimizer.lr holds inf"),
        ({"weight_decay": math.nan}, "optimizer.weight_decay holds nan"),
        ({"eps": math.inf}, "optimizer.eps holds inf"),
        ({"end_factor": math.nan}, "optimizer.end_factor holds nan"),
        ({"clip_norm": math.inf}, "optimizer.clip_norm holds inf"),
        ({"kind": "lamp"}, "optimizer.kind is 'lamp': choose one of adamw, lamb"),
        ({"betas": (0.9, 1.0)}, r"optimizer.betas\[1\] is 1.0"),
        ({"cosine_share": 1.5}, "optimizer.cosine_share is 1.5"),
        ({"ema_decay": 1.0}, "optimizer.ema_decay is 1.0"),
        ({"ema_decay": -0.1}, "optimizer.ema_decay is -0.1"),
    ],
)
def test_an_optimizer_that_cannot_learn_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        OptimizerConfig(**change)


@pytest.mark.parametrize("text", [".nan", ".inf"])
def test_steps_of_warming_up_are_a_whole_number(text):
    with pytest.raises(ValueError, match=r"'warmup_steps' = .*: it should be a valid integer"):
        load(OptimizerConfig, None, [f"warmup_steps={text}"])
