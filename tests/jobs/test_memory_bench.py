"""`farreach bench memory` measures all steps that fit, says what does not, and fits the growth."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fit_model.layers import FeedForward
from jobs import memory_steps, products
from jobs.cli import app
from jobs.fresh_process import in_fresh_process
from jobs.memory_bench import MemoryBench, expected_bytes, measured
from jobs.memory_report import Report
from jobs.memory_steps import StepCost
from jobs.operator_costs import LeftOut

SMALL = {
    "layers": "(1)1(1)", "width": 16, "latent_width": 16, "latents_per_group": 2, "heads": 2,
    "latent_heads": 2,
}  # fmt: skip
TRUNK = [f"trunk.{name}={json.dumps(value)}" for name, value in SMALL.items()]


class Machine:
    """An invented one: as many seconds as there are groups of an image; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, task):
        self.asked.append((task.groups_a_side, task.bounded is not None))
        seconds = float(task.groups_a_side**2)
        return StepCost(
            seconds=seconds,
            peak_bytes=9,
            anonymous_bytes=8,
            beyond_bytes=7,
            product_flops_per_s=1e12,
        )


def test_growth_is_fitted_and_shares_count_what_is_computed_again():
    config = MemoryBench(sides=(1600, 3200, 6400), variants=("bounded", "whole"), limit_gb=1000.0)
    report = Report(points=measured(config, Machine()), setting="")
    assert report.power("bounded") == pytest.approx(1.0)
    bounded, whole = report.of("bounded")[0], report.of("whole")[0]
    assert bounded.tokens == whole.tokens == 10_000
    assert bounded.macs == whole.macs
    again, once = report.share(bounded), report.share(whole)
    assert again is not None
    assert once is not None
    assert again / once == pytest.approx(4 / 3)


def test_what_is_predicted_not_to_fit_is_never_run_and_named():
    machine = Machine()
    config = MemoryBench(sides=(1600, 6400, 12800), limit_gb=20.0, limit_s=5000.0)
    points = {(each.variant, each.side_px): each for each in measured(config, machine)}
    assert points["whole", 6400].left_out == "> 20 GB"
    assert points["vix", 12800].left_out == "> 20 GB"
    # 160 groups a side take 6400 s at least
    assert points["bounded, disk", 12800].left_out == "> 5000 s"
    assert points["bounded, disk", 6400].cost is not None
    assert max(side for side, _ in machine.asked) == 40


def test_after_a_step_that_died_no_larger_one_is_tried():
    config = MemoryBench(sides=(320, 640), variants=("bounded",))
    points = measured(config, lambda task: LeftOut(why="died (-9)"))
    assert [each.left_out for each in points] == ["died (-9)", "died (-9)"]


def test_all_variants_see_the_same_tokens_and_the_transformer_is_as_deep():
    config = MemoryBench(sides=(640,))
    tasks = {variant: config.task(variant, 640) for variant in config.variants}
    tokens = {task.groups_a_side**2 * task.model.num_tokens for task in tasks.values()}
    assert tokens == {1600}
    assert tasks["vix"].model.face.depth == 2 + 4 + 2 + 4 + 2
    assert expected_bytes(tasks["bounded, disk"]) < expected_bytes(tasks["whole"])


def test_every_step_is_measured_for_real_and_the_files_appear_whole(tmp_path):
    output = tmp_path / "made"
    settings = [f"output={output}", "sides=[64]", "group_side_px=32", "patch_px=8", *TRUNK]
    settings += ['variants=["bounded, disk", "whole", "vix"]', "threads=1", "groups_a_chunk=2"]
    found = CliRunner().invoke(app, ["bench", "memory", *settings])
    assert found.exit_code == 0, found.output
    names = sorted(path.name for path in output.iterdir())
    assert names == ["memory.json", "memory.png", "memory.txt"]
    assert (output / "memory.png").read_bytes().startswith(b"\x89PNG")
    whole = json.loads((output / "memory.json").read_text())
    assert len(whole["points"]) == 3
    for point in whole["points"]:
        assert point["left_out"] is None
        assert point["cost"]["seconds"] > 0.0
        assert point["cost"]["peak_bytes"] >= point["cost"]["anonymous_bytes"] > 0
        assert point["cost"]["product_flops_per_s"] > 0.0
        assert point["share_of_product"] > 0.0
    again = CliRunner().invoke(app, ["bench", "memory", *settings])
    assert again.exit_code == 2
    assert "exists: choose another output" in again.output


def test_what_a_device_still_computes_for_the_step_is_the_steps_own_time(monkeypatch):
    now_s, asked_s = [100.0], [7.0]
    monkeypatch.setattr(products.time, "perf_counter", lambda: now_s[0])

    def wait():
        now_s[0] += asked_s[0]
        asked_s[0] = 0.0

    monkeypatch.setitem(products.WAITS, "cpu", wait)
    layer = FeedForward(width=4, mlp_ratio=4, dropout=0.0)
    found = products.Products(layer)
    monkeypatch.setattr(torch, "mm", lambda *args, out: asked_s.__setitem__(0, 0.25))
    with found.between():
        layer(torch.zeros(1, 1, 4))
    assert now_s[0] == 107.5
    assert found.spent_s == 0.5
    assert found.flops_per_s == 2 * products.ROWS * 64 / 0.25


def test_a_gpu_refuses_a_step_more_than_the_limit(monkeypatch):
    shares = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8e9)
    )
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)

    def refused(task):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory_steps, "one_step", refused)
    monkeypatch.setattr(memory_steps, "keep_freed_blocks", lambda: None)
    config = MemoryBench(sides=(160,), device="cuda", limit_gb=2.0, threads=1)
    assert memory_steps.measure(config.task("whole", 160)) == LeftOut(why="> 2 GB")
    assert shares == [0.25]


def test_a_process_that_dies_is_named_and_what_goes_wrong_in_one_is_raised():
    assert in_fresh_process(sys.exit, 3, patience_s=60.0) == LeftOut(why="died (3)")
    with pytest.raises(ValueError, match="invalid literal for int"):
        in_fresh_process(int, "three", patience_s=60.0)
    assert in_fresh_process(abs, -3, patience_s=0.0) == LeftOut(why="> 0 s")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["variants=[wholes]"], "variants is 'wholes'"),
        (["sides=[100]"], "sides has 100, which is no multiple of group_side_px 160"),
        (["sides=[]"], "sides is []"),
        (["limit_gb=0"], "limit_gb is 0: it must be more than 0"),
        (["threads=0"], "threads is 0"),
        (["device=cuda", "output=nowhere"], "device is 'cuda', but PyTorch sees no GPU here"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(settings, said, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = CliRunner().invoke(app, ["bench", "memory", *settings])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1
