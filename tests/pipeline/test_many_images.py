"""A great many tiny images: what the driver does grows with their number and no faster."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import preprocess
from pipeline.grid import Window
from pipeline.readers.protocol import ImageHeader, SourceError
from tests.pipeline.scenes import in_process

EVERY_BAD = 50


class TinyImage:
    """8 x 8 px that cost nothing to read."""

    header = ImageHeader(
        width_px=8,
        height_px=8,
        bands=1,
        dtype="uint8",
        num_levels=1,
        tile_height_px=8,
        tile_width_px=8,
    )

    def read(self, window: Window, *, out: np.ndarray | None = None) -> np.ndarray:
        assert out is not None
        out[...] = 7
        return out

    def keep_tiles(self, num_bytes: int) -> None:
        pass


@contextmanager
def tiny(uri: str, **_: Any) -> Iterator[TinyImage]:
    if int(Path(uri).stem) % EVERY_BAD == 0:
        raise SourceError("is no image")
    yield TinyImage()


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """How many functions are called inside the block, those written in C included."""
    calls = [0]

    def count(frame: object, event: str, argument: object) -> None:
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def test_four_times_the_images_take_four_times_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.readers.open.open_image", tiny)
    calls = {}
    for count in (300, 1200):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").touch()
        config = PreprocessConfig(
            sources=str(folder),
            output=str(tmp_path / f"out{count}"),
            grouping=GroupingConfig(group_side_px=8, patch_px=8),
            shard_mb=1,
        )
        with counted_calls() as made:
            report = preprocess(config, run_stage=in_process)
        calls[count] = made[0]
        assert (report.images, len(report.quarantined)) == (
            count - count // EVERY_BAD,
            count // EVERY_BAD,
        )
        with counted_calls() as made:
            assert len(open_dataset(report.output).images()) == report.images
        calls[-count] = made[0]
    assert calls[1200] < 4.1 * calls[300]
    assert calls[-1200] < 4.1 * calls[-300]
