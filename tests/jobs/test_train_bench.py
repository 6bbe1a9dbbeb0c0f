"""`farreach bench train` says what checkpoints and the guard cost a run."""

import json

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.train_bench_report import Report, cost
from jobs.train_bench_steps import Pair, Spent


def pairs(*extra_s: float, without: float) -> tuple[Pair, ...]:
    return tuple(Pair(with_it=without + each, without=without) for each in extra_s)


def made_up() -> Report:
    """Steps of 0.1 s in blocks of 10, and one pair that something else has disturbed."""
    return Report(
        spent=Spent(
            first_step_at=0.0,
            background=pairs(0.2, 0.1, 0.2, 9.0, 0.2, without=1.0),
            foreground=pairs(0.5, 0.5, 0.5, without=1.0),
            guard=pairs(0.001, 0.003, 0.002, without=0.1),
        ),
        every_steps=50,
        block_steps=10,
        first_start_s=9.0,
        workers_again_s=7.0,
        driver_again_s=12.0,
        setting="made up",
    )


def test_a_checkpoints_extra_seconds_are_a_share_of_the_steps_between_two():
    background, foreground, guard = made_up().costs()
    assert made_up().step_s == pytest.approx(0.1)
    assert background.share == pytest.approx(0.2 / 5.0)
    assert foreground.share == pytest.approx(0.5 / 5.0)
    assert guard.share == pytest.approx(0.02)
    assert str(background).endswith("less than 5% asked for: yes")
    assert str(guard).endswith("less than 1% asked for: NO")
    assert "asked for" not in str(foreground)


def test_the_spread_holds_the_median_and_narrows_with_pairs():
    few = cost("x", pairs(*range(10), without=1.0), 10.0)
    many = cost("x", pairs(*[each / 100 for each in range(1000)], without=1.0), 10.0)
    for each in (few, many):
        assert each.lowest <= each.share <= each.highest
    assert many.highest - many.lowest < few.highest - few.lowest


@pytest.mark.ray
def test_it_measures_for_real_and_the_files_appear_whole(tmp_path):
    output = tmp_path / "made"
    given = [f"output={output}", "scenes=16", "rounds=2", "block_steps=2", "guard_pairs=2"]
    found = CliRunner().invoke(app, ["bench", "train", *given])
    assert found.exit_code == 0, found.output
    assert "a checkpoint every 50 steps, in the background" in found.output
    names = sorted(path.name for path in output.iterdir())
    assert names == ["train.json", "train.png", "train.txt"]
    values = json.loads((output / "train.json").read_text())
    spent = values["spent"]
    assert [len(spent[name]) for name in ("background", "foreground", "guard")] == [2, 2, 2]
    assert values["driver_again_s"] > values["workers_again_s"] > 0.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rounds=0", "rounds is 0"),
        ("block_steps=1", "block_steps is 1: a checkpoint needs at least 2"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(setting, said):
    found = CliRunner().invoke(app, ["bench", "train", setting])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1
