"""`farreach plan` chooses the cheapest way that fits, and says in one line what does not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fit_model.autoregressive import AutoregressiveConfig
from fit_model.bounded.config import BoundedConfig
from jobs.batches import BatchConfig
from jobs.choosing_plans import GB, Limits, bounded, cheapest, most, splits
from jobs.cli import app
from jobs.engine import EngineConfig
from jobs.errors import UserError
from jobs.memory_limit import bounded_of, bounded_within
from jobs.plan import PlanConfig
from jobs.planning import Demand, Plan, expected
from jobs.settings import load
from jobs.train_config import TrainConfig
from jobs.trial import random_batch
from jobs.workers import WorkersConfig
from tests.conftest import REPOSITORY
from tests.jobs.small_training import train_config

REFERENCE = REPOSITORY / "jobs/configs/plan/gigabit.yaml"
GENEROUS = 1000.0
ONE_IMAGE = BatchConfig(images_per_step=1)
ANY_SIZE = ("model.latent_position=coordinate", "model.num_groups=null")


def demand(*settings: str) -> Demand:
    return load(PlanConfig, REFERENCE, settings).demand()


def chosen(limit_gb: float, *settings: str, workers: int = 1, **limits: float) -> Plan:
    others = {name: GB * limit for name, limit in limits.items()}
    found = Limits(device_bytes=GB * limit_gb, **others)
    return cheapest(demand(*settings), found, num_workers=workers)


def device_gb(plan: Plan, *settings: str) -> float:
    return expected(demand(*settings), plan).total("device") / GB


def test_the_reference_model_has_its_parameters_tokens_and_latents():
    found = demand()
    assert found.num_parameters == pytest.approx(114.28e6, rel=1e-3)
    assert found.groups_per_image * found.model.num_tokens == 160_000
    assert found.pixel_bytes == 6400 * 6400 * 3


def test_less_memory_means_slower_ways_and_each_fits():
    ways = []
    for limit_gb in (60.0, 16.0, 5.5, 3.4):
        plan = chosen(limit_gb)
        assert device_gb(plan) <= limit_gb
        ways.append(plan.way.partition(",")[0] + plan.way.rpartition(",")[2])
    assert ways[0] == "wholewhole"
    assert ways[1] == "whole recomputed"
    assert ways[2].startswith("bounded")
    assert ways[3].endswith("tokens wait on the disk")


def test_as_many_groups_a_chunk_as_fit_are_taken():
    plan = chosen(5.5)
    assert plan.bounded is not None
    more = bounded(plan, plan.bounded.groups_a_chunk + 1, plan.bounded.offload)
    assert device_gb(plan) <= 5.5 < device_gb(more)
    assert most(lambda n: n <= 37, up_to=1000) == 37
    assert most(lambda n: False, up_to=1000) == 0
    assert most(lambda n: True, up_to=9) == 9


def test_a_gpu_lets_tokens_wait_on_the_host_before_the_disk():
    gpu = ("workers.device=gpu", "image_side_px=32768", "group_side_px=320", *ANY_SIZE)
    assert "on the host" in chosen(12.0, *gpu).way
    assert "on the disk" in chosen(12.0, *gpu, host_bytes=12.0).way


def test_zero_spreads_what_the_optimizer_holds_over_workers():
    state = {
        (stage, count): expected(
            demand(f"images_per_step={count}"), Plan(num_workers=count, zero_stage=stage)
        )
        for stage in (0, 2)
        for count in (1, 4)
    }
    held = {
        key: next(part.bytes for part in found.parts if part.name == "optimizer")
        for key, found in state.items()
    }
    assert held[0, 4] == held[0, 1]
    assert held[2, 4] * 4 == pytest.approx(held[2, 1])
    assert held[0, 1] == 12 * demand().num_parameters


def test_workers_share_one_image_where_there_are_fewer_images():
    assert [plan.sharing for plan in splits(demand(), num_workers=4)] == [4, 4]
    several = splits(demand("images_per_step=2"), num_workers=4)
    assert {plan.sharing for plan in several} == {2, 4}
    plan = chosen(GENEROUS, workers=4)
    assert plan.settings(demand())["parallel.groups"] == "4"
    assert device_gb(plan) < device_gb(chosen(GENEROUS))


def test_an_autoregressive_model_shares_whole_rows_of_groups():
    trunk = replace(demand().model.face.trunk, layers="(1)1(1)")
    face = AutoregressiveConfig(patch_px=16, trunk=trunk)
    config = PlanConfig(model=face, image_side_px=640, group_side_px=160, memory_limit_gb=9.0)
    asked, limits = config.demand(), Limits(device_bytes=GB * GENEROUS)
    plan = cheapest(asked, limits, num_workers=4)
    assert plan.sharing == 4
    assert [len(random_batch(asked, plan, rank).image) for rank in range(4)] == [4, 4, 4, 4]
    with pytest.raises(UserError, match=r"num_workers 16 leaves .* divided between 4; take fewer"):
        cheapest(asked, limits, num_workers=16)


def test_what_nothing_fits_in_is_refused_with_the_setting_to_change():
    with pytest.raises(
        UserError, match=r"^3 GB of device memory are too few: .*more workers.num_w"
    ):
        chosen(3.0)
    with pytest.raises(UserError, match=r"workers.num_workers=\d+ would do$"):
        chosen(3.0)
    latents = ("image_side_px=51200", *ANY_SIZE, "model.trunk.latents_per_group=16")
    with pytest.raises(UserError, match=r"most of it .*; take fewer model.trunk.latents_per_group"):
        chosen(8.0, "workers.device=gpu", *latents)


def test_the_same_planner_bounds_a_training():
    plan, asked = Plan(num_workers=1, zero_stage=2), demand()
    assert bounded_within(asked, plan, limit_gb=GENEROUS) is None
    found = bounded_within(asked, plan, limit_gb=6.0)
    assert found is not None
    assert found.groups_a_chunk >= 1
    given = replace(plan, bounded=BoundedConfig(groups_a_chunk=2000))
    assert bounded_within(asked, given, limit_gb=GENEROUS) == given.bounded
    with pytest.raises(UserError, match=r"memory_limit_gb 6 is not enough: .*groups_a_chunk"):
        bounded_within(asked, given, limit_gb=6.0)


def test_a_training_with_a_memory_limit_is_bounded_by_its_largest_image():
    config = train_config("d", memory_limit_gb=6.0, engine=EngineConfig(precision="bf16"))
    config = replace(config, model=demand().model.face)
    config = replace(config, workers=WorkersConfig(num_workers=1), batch=ONE_IMAGE)
    small, large = (SimpleNamespace(groups=range(n), dtype="int32") for n in (16, 1600))
    model = demand().model
    assert bounded_of(config, model, [small]) is None
    found = bounded_of(config, model, [small, large])
    assert found is not None
    assert 1 <= found.groups_a_chunk < 1600
    assert bounded_of(replace(config, memory_limit_gb=None), model, [small, large]) is None
    with pytest.raises(ValueError, match="memory_limit_gb is 0"):
        replace(config, memory_limit_gb=0.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["memory_limit_gb=0"], "memory_limit_gb is 0: it must be more than 0"),
        (["memory_limit_gb=1"], "1 GB of device memory are too few: a step needs at least"),
        (["memory_limit_gb=0.5"], "0.7 GB of it the program alone; take a higher limit"),
        (["group_side_px=100"], "group_side_px 100 is no multiple of patch_px 16"),
        (["image_side_px=640"], "set model.num_groups=16, or model.latent_position=coordinate"),
        (["image_side_px=0"], "image_side_px is 0"),
        (["pixel_dtype=int3"], "pixel_dtype is 'int3'"),
        (["memory_limit=3"], "did you mean 'memory_limit_gb'"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(settings, says):
    found = CliRunner().invoke(app, ["plan", str(REFERENCE), *settings])
    assert found.exit_code == 2
    assert says in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_what_is_printed_can_be_pasted():
    found = CliRunner().invoke(app, ["plan", str(REFERENCE), "memory_limit_gb=5.5"])
    assert found.exit_code == 0, found.output
    for word in ("optimizer", "kept inputs", "global layers", "TFLOP", "GB at the peak"):
        assert word in found.output
    pasted = found.output.strip().splitlines()[-1].split()
    needed = ["name=n", "dataset=d", "total_steps=1", "target.kind=classify", "target.label=l"]
    needed += ["model.kind=encoder", "model.patch_px=16", "model.trunk.width=8"]
    needed += ["model.trunk.layers='(1)1'", "model.trunk.latent_width=8", "model.trunk.heads=1"]
    needed += ["model.trunk.latents_per_group=1", "model.trunk.latent_heads=1"]
    config = load(TrainConfig, None, [*needed, "batch.images_per_step=1", *pasted])
    assert config.bounded is not None


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_trial_shows_pixels_as_they_were_planned(dtype):
    asked = demand("image_side_px=640", f"pixel_dtype={dtype}", *ANY_SIZE)
    pixels = random_batch(asked, Plan(), 0).pixels.to("cpu")
    assert pixels.dtype == getattr(torch, dtype)
    assert pixels.nbytes == asked.pixel_bytes == 640**2 * 3 * pixels.itemsize


def test_a_small_plan_is_measured_beside_what_is_expected():
    settings = ["image_side_px=64", "group_side_px=32", "memory_limit_gb=2", "precision=fp32"]
    settings += [
        *ANY_SIZE,
        "model.patch_px=8",
        "model.trunk.width=16",
        "model.trunk.latent_width=16",
    ]
    settings += ["model.trunk.heads=2", "model.trunk.latent_heads=2", "--measure"]
    found = CliRunner().invoke(app, ["plan", str(REFERENCE), *settings])
    assert found.exit_code == 0, found.output
    assert "measured" in found.output
    assert "seconds a step" in found.output
