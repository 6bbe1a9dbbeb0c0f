"""`farreach bench operators` measures all that fits, says what does not, and finds the slopes."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from fit_model.attention.mixers import MIXERS
from fit_model.attention.operators import OPERATORS
from jobs import operators_bench
from jobs.cli import app
from jobs.operator_children import Nursery
from jobs.operator_costs import Cost, LeftOut, grid_of
from jobs.operator_growth import LAWS, law_of, slope
from jobs.operators_bench import OperatorsBench, measured
from jobs.operators_picture import apart
from jobs.operators_report import QUANTITIES

TIME, MEMORY = QUANTITIES


class PowerLaw:
    """Costs of an invented machine: n^2 ns each way and 1000 n bytes; keeps what it was asked."""

    def __init__(self, *, failing_at: int | None = None) -> None:
        self.failing_at = failing_at
        self.asked = []

    def __call__(self, task):
        self.asked.append((task.allocator, task.operator, task.length))
        if task.length == self.failing_at:
            return LeftOut(why="died (-9)")
        seconds = 1e-9 * task.length**2
        # the slower allocator of the first pass must not count as time
        seconds *= 1.5 if task.allocator == "returning" else 1.0
        return Cost(forward_s=seconds, backward_s=seconds, peak_bytes=1000 * task.length)


def left_out(report):
    return {(p.operator, p.length): p.left_out for p in report.points if p.left_out}


def test_the_slopes_of_a_power_law_are_found():
    config = OperatorsBench(operators=("softmax", "tssa"), lengths=(64, 128, 256, 512))
    report = measured(config, PowerLaw())
    time, memory = (report.curve("softmax", each) for each in QUANTITIES)
    assert time.slope == pytest.approx(2.0)
    assert time.expected == pytest.approx(2.0)
    assert memory.slope == pytest.approx(1.0)
    assert time.values == pytest.approx([2e-6 * n**2 for n in (64, 128, 256, 512)])
    assert slope([7], [1.0]) is None


def test_slopes_are_those_of_the_longest_lengths():
    values = [5.0, 5.0, 5.0, 10.0, 20.0]
    points = measured(OperatorsBench(lengths=(1, 2, 4, 8, 16), slope_lengths=3), PowerLaw())
    curve = points.curve("fnet", TIME)
    assert curve.expected == pytest.approx(slope([4, 8, 16], [8, 24, 64]))
    assert slope([4, 8, 16], values[-3:]) == pytest.approx(1.0)
    assert slope([1, 2, 4, 8, 16], values) < 0.7


def test_every_round_times_every_pair_once_in_its_own_order():
    config = OperatorsBench(operators=("softmax", "tssa", "xca"), lengths=(8, 16, 32), rounds=2)
    machine = PowerLaw()
    measured(config, machine)
    timed = [each for each in machine.asked if each[0] == "usual"]
    first, second = timed[:9], timed[9:]
    assert len(set(first)) == 9
    assert set(first) == set(second)
    assert first != second


def test_what_is_predicted_not_to_fit_is_never_run_and_named():
    """It takes 3e-9 n^2 s at first: 0.05 s at 4096, 0.2 s at 8192; and 1000 n bytes."""
    config = OperatorsBench(
        operators=("softmax", "softmax_reference", "tssa"),
        lengths=(1024, 4096, 8192, 16384),
        limit_s=0.15,
        limit_gb=15e-3,
    )
    machine = PowerLaw()
    report = measured(config, machine)
    assert left_out(report) == {
        ("softmax", 8192): "> 0.15 s",
        ("softmax", 16384): "> 0.15 s",
        # its law says n^2 for memory, so 16 times the first MB are too much
        ("softmax_reference", 4096): "> 0.015 GB",
        ("softmax_reference", 8192): "> 0.015 GB",
        ("softmax_reference", 16384): "> 0.015 GB",
        # linear by its law: measured, and found to be slower
        ("tssa", 8192): "> 0.15 s",
        ("tssa", 16384): "> 0.15 s",
    }
    assert {each[1:] for each in machine.asked} == {
        ("softmax", 1024),
        ("softmax", 4096),
        ("softmax_reference", 1024),
        ("tssa", 1024),
        ("tssa", 4096),
        ("tssa", 8192),
    }


def test_a_pair_that_dies_is_named_and_the_longer_ones_are_not_tried():
    machine = PowerLaw(failing_at=16)
    report = measured(OperatorsBench(operators=("xca",), lengths=(8, 16, 32)), machine)
    assert left_out(report) == {("xca", 16): "died (-9)", ("xca", 32): "died (-9)"}
    assert ("returning", "xca", 32) not in machine.asked


def test_every_operator_has_a_law():
    assert set(LAWS) == {*OPERATORS, *MIXERS}
    assert law_of("aft_full@rank=none").memory.power == 2
    assert law_of("aft_full@rank=8").memory.power == 1


def test_lengths_lie_on_the_grid_nearest_to_a_square():
    assert grid_of(4096) == (64, 64)
    assert grid_of(2048) == (32, 64)
    assert grid_of(7) == (1, 7)


def test_labels_move_apart_and_keep_their_order():
    places = [0.5, 0.1, 0.52, 0.51, 0.9]
    moved = apart(places, gap=0.1)
    assert list(np.argsort(moved)) == list(np.argsort(places))
    assert np.diff(sorted(moved)).min() >= 0.1 - 1e-9
    assert moved[1] == pytest.approx(0.1)
    assert moved[4] == pytest.approx(0.9)
    assert (moved[0] + moved[2] + moved[3]) / 3 == pytest.approx(0.51)


@pytest.fixture(scope="module")
def nursery():
    with pytest.MonkeyPatch.context() as patch, Nursery() as nursery:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield nursery


def test_every_pair_is_measured_for_real_and_the_files_appear_whole(tmp_path, nursery, monkeypatch):
    monkeypatch.setattr(operators_bench, "Nursery", lambda: nullcontext(nursery))
    output = tmp_path / "made" / "here"
    settings = [f"output={output}", "operators=[softmax, linformer@rank=4]"]
    settings += ["lengths=[16, 1024]", "width=8", "heads=2", "rounds=1", "limit_s=600"]
    found = CliRunner().invoke(app, ["bench", "operators", *settings])
    assert found.exit_code == 0, found.output
    assert sorted(path.name for path in output.iterdir()) == [
        "operators.json",
        "operators.png",
        "operators.txt",
    ]
    assert [path.name for path in output.parent.iterdir()] == ["here"]
    assert (output / "operators.png").read_bytes().startswith(b"\x89PNG")
    assert "linformer@rank=4" in (output / "operators.txt").read_text()
    whole = json.loads((output / "operators.json").read_text())
    pairs = [(each["operator"], each["length"]) for each in whole["points"]]
    operators = ["softmax", "linformer@rank=4"]
    assert pairs == [(operator, length) for operator in operators for length in (16, 1024)]
    for point in whole["points"]:
        assert point.get("left_out") is None
        assert point["seconds"] > 0.0
        # input, result, and the gradients of both: 8 channels of 4 bytes
        assert point["peak_bytes"] > (point["length"] == 1024) * 4 * 1024 * 32
    assert [each["operator"] for each in whole["slopes"]] == operators
    assert whole["settings"]["lengths"] == [16, 1024]
    again = CliRunner().invoke(app, ["bench", "operators", *settings])
    assert again.exit_code == 2
    assert "exists: choose another output" in again.output


def test_memory_is_what_the_tensors_take(nursery):
    """Scores of 2 heads, their softmax and the gradients of both: 4 bytes each, not all at once."""
    config = OperatorsBench(width=8, heads=2, lengths=(64, 1024))
    cost = nursery(config.task("softmax_reference", 1024, "returning"))
    scores = 2 * 4 * 1024**2
    assert 2.9 * scores < cost.peak_bytes < 5.1 * scores


def test_a_process_is_refused_more_memory_than_the_limit(nursery):
    config = OperatorsBench(width=8, heads=2, lengths=(64, 4096), limit_gb=0.05)
    found = nursery(config.task("softmax_reference", 4096, "returning"))
    assert found == LeftOut(why="> 0.05 GB")


def test_a_process_that_is_too_slow_is_ended_and_the_next_one_answers(nursery):
    task = OperatorsBench(lengths=(64,)).task("softmax", 64, "usual")
    assert nursery(replace(task, patience_s=0.0)) == LeftOut(why="> 10 s")
    assert nursery(task).seconds > 0.0


def test_what_goes_wrong_in_a_process_is_raised(nursery):
    task = OperatorsBench(lengths=(64,)).task("linformer@rank=0", 64, "usual")
    with pytest.raises(ValueError, match="rank is 0"):
        nursery(task)
    assert nursery(replace(task, operator="fnet")).seconds > 0.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["operators=[softmx]"], "operators is 'softmx': did you mean 'softmax'?"),
        (["operators=[tssa, tssa]"], "operators is ['tssa', 'tssa']: give at least one"),
        (["lengths=[0, 1024]"], "lengths is 0: it must be at least 1"),
        (["lengths=[]"], "lengths is []"),
        (["width=10"], "width 10 is no multiple of heads 4"),
        (["limit_s=0"], "limit_s is 0: it must be more than 0"),
        (["slope_lengths=1"], "slope_lengths is 1: a slope needs at least 2"),
        (["dtype=float16"], "'dtype' = 'float16'"),
        (["device=cuda", "output=nowhere"], "device is 'cuda', but PyTorch sees no GPU here"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(settings, said, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = CliRunner().invoke(app, ["bench", "operators", *settings])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_help_lists_the_benches():
    found = CliRunner().invoke(app, ["bench", "--help"])
    assert "operators" in found.output
    assert "decoding" in found.output
