"""Images that stand out in a skipped step are named, with their groups, and shown."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from jobs.errors import MachineFault
from jobs.events import Event
from jobs.offender_record import SKIPPED, OffenderRecord, extreme_groups
from jobs.offenders import MOST, Offender, number, standing_out
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import preprocess
from tests.pipeline.scenes import in_process, noise, write_raster

HUGE = np.float32(1e30)
LOSSES = st.one_of(st.floats(0.0, 9.0), st.sampled_from([math.nan, math.inf]))


@given(losses=st.dictionaries(st.sampled_from("abcdefghij"), LOSSES))
def test_those_that_are_not_finite_stand_out_or_else_the_highest(losses):
    found = [each.id for each in standing_out(Offender(id=k, loss=v) for k, v in losses.items())]
    lost = sorted(key for key, value in losses.items() if not math.isfinite(value))
    expected = lost or sorted(losses, key=lambda key: (-losses[key], key))[:MOST]
    assert found == expected


def test_an_image_that_several_workers_hold_is_named_once():
    told = [Offender(id="a", loss=math.nan), Offender(id="a", loss=math.nan)]
    assert len(standing_out(told)) == 1


def test_what_is_no_number_is_told_by_its_name():
    assert [number(each) for each in (1.5, math.nan, -math.inf)] == [1.5, "nan", "-inf"]


@dataclass
class Run:
    files: dict[str, Any] = field(default_factory=dict)

    def log_json(self, value: Any, file: str) -> None:
        self.files[file] = json.loads(json.dumps(value, allow_nan=False))

    def log_figure(self, figure: Figure, file: str) -> None:
        self.files[file] = figure


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Images of 6 groups; one has a huge pixel in its group 4."""
    folder: Path = tmp_path_factory.mktemp("huge")
    for name in ("good", "huge"):
        pixels = noise(30, 48, 2, seed=1, dtype="uint8").astype(np.float32)
        if name == "huge":
            pixels[20, 20, 1] = HUGE
        write_raster(folder / "images" / f"{name}.tif", pixels, nodata=None)
    preprocess(
        PreprocessConfig(
            sources=str(folder / "images"),
            output=str(folder / "dataset"),
            grouping=GroupingConfig(group_side_px=16, patch_px=8),
        ),
        run_stage=in_process,
    )
    return open_dataset(str(folder / "dataset"))


def test_the_group_of_an_extreme_value_is_found_and_no_other(dataset):
    groups = {each.image_id: extreme_groups(dataset, each) for each in dataset.images()}
    assert groups == {"good": [], "huge": [4]}


def skipped(images: list[Mapping[str, Any]]) -> Event:
    facts = {"reason": "the loss is not finite", "loss": "nan", "grad_norm": 2.0, "images": images}
    return Event(kind=SKIPPED, step=7, text="", facts=facts)


def test_a_skipped_step_leaves_its_images_and_a_picture_of_them(dataset):
    run, split = Run(), dataset.images()[0].split
    images = [{"id": "huge", "loss": "nan"}, {"id": "good", "loss": 1.5}]
    with OffenderRecord(dataset, split=split, run=run, console=Console()) as record:
        record(skipped(images))
        record(Event(kind="rolled back", step=9, text=""))
    assert run.files.keys() == {"offenders/step-0000007.json", "offenders/step-0000007.png"}
    assert run.files["offenders/step-0000007.json"] == {
        "step": 7,
        "reason": "the loss is not finite",
        "loss": "nan",
        "grad_norm": 2.0,
        "images": [
            {"id": "huge", "loss": "nan", "groups": [4]},
            {"id": "good", "loss": 1.5, "groups": []},
        ],
    }
    figure = run.files["offenders/step-0000007.png"]
    outlines = {
        axes.get_title().splitlines()[0]: [
            (each.get_x(), each.get_y(), each.get_width()) for each in axes.patches
        ]
        for axes in figure.axes
    }
    assert outlines == {"huge": [(16, 16, 16)], "good": []}


def test_artifacts_that_fail_are_told_and_nothing_else_fails(dataset, capsys):
    with OffenderRecord(dataset, split="no", run=Run(), console=Console()) as record:
        record(skipped([{"id": "unknown", "loss": 1.0}]))
    assert "step 7: no picture of its images" in capsys.readouterr().out


def test_a_training_that_gives_up_leaves_the_artifacts_that_it_refers_to(dataset):
    run, split = Run(), dataset.images()[0].split
    record = OffenderRecord(dataset, split=split, run=run, console=Console())
    for step in (5, 6, 7):
        record(replace(skipped([{"id": "good", "loss": 1.5}]), step=step))
    record.__exit__(MachineFault, MachineFault("going back has not helped"), None)
    names = {f"offenders/step-{step:07d}" for step in (5, 6, 7)}
    assert run.files.keys() == {f"{name}.{end}" for name in names for end in ("json", "png")}
