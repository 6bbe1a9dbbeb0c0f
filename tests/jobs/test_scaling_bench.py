"""`farreach bench scaling` says how much of the ideal several workers reach on one image."""

import json

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.scaling_bench import ScalingBench, measured
from jobs.scaling_steps import Spent

SMALL = {
    "layers": "(1)1(1)", "width": 16, "latent_width": 16, "latents_per_group": 2, "heads": 2,
    "latent_heads": 2,
}  # fmt: skip
TRUNK = [f"trunk.{name}={json.dumps(value)}" for name, value in SMALL.items()]


def test_what_is_outside_meetings_is_held_against_the_ideal():
    """Two workers would take five seconds for ten that are outside, and take six."""
    times = {1: Spent(passes_s=12.0, meetings_s=2.0, gradients_s=0.0)}
    times[2] = Spent(passes_s=8.0, meetings_s=2.0, gradients_s=1.5)
    report = measured(ScalingBench(), lambda task, workers: times[workers])
    assert report.efficiency(1) == pytest.approx(1.0)
    assert report.ideal_s(2) == pytest.approx(5.0)
    assert report.efficiency(2) == pytest.approx(5 / 6)
    assert times[2].step_s == pytest.approx(9.5)


def test_two_workers_are_measured_for_real_and_the_files_appear_whole(tmp_path):
    output = tmp_path / "made"
    settings = [f"output={output}", "side_px=96", "group_side_px=32", "patch_px=8", "rounds=1"]
    found = CliRunner().invoke(app, ["bench", "scaling", *settings, *TRUNK, "workers=[2]"])
    assert found.exit_code == 0, found.output
    names = sorted(path.name for path in output.iterdir())
    assert names == ["scaling.json", "scaling.png", "scaling.txt"]
    points = json.loads((output / "scaling.json").read_text())["points"]
    assert [each["workers"] for each in points] == [2]
    assert points[0]["passes_s"] > 0.0
    assert points[0]["meetings_s"] > 0.0
    assert points[0]["gradients_s"] > 0.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["workers=[200]"], "workers has 200, more group workers than the image has groups, 100"),
        (["workers=[]"], "workers is []"),
        (["side_px=1000"], "side_px is 1000, no multiple of group_side_px 160"),
        (["rounds=0"], "rounds is 0"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(settings, said):
    found = CliRunner().invoke(app, ["bench", "scaling", *settings])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1
