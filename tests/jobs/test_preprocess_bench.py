"""`farreach bench preprocess` says what share of bare decoding the real preprocessing reaches."""

import json

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from jobs.bare_decoding import Rows, decode
from jobs.bench_images import KINDS, quiet
from jobs.cli import app
from jobs.preprocess_bench import PreprocessBench, measured
from jobs.preprocess_report import Round


def test_the_share_is_that_of_the_same_round_and_speeds_are_of_the_median():
    rounds = [
        Round(decode_s=1.0, preprocess_s=2.0),
        Round(decode_s=4.0, preprocess_s=5.0),
        Round(decode_s=2.0, preprocess_s=2.5),
    ]
    config = PreprocessBench(images=(("jpeg", 100),))
    (point,) = measured(config, lambda path, config: (rounds, 0.5)).points
    assert point.share == pytest.approx(0.8)
    assert point.ceiling == pytest.approx(0.01 / 2)
    assert point.speed == pytest.approx(0.01 / 2.5)


@pytest.mark.parametrize(
    ("kind", "bands", "dtype", "tile_px", "compression"),
    [
        ("jpeg", 3, "uint8", 256, "YCBCR JPEG"),
        ("deflate", 3, "uint8", 512, "DEFLATE"),
        ("uint16", 4, "uint16", 512, "DEFLATE"),
    ],
)
def test_the_images_are_what_they_are_called_and_the_same_every_time(
    tmp_path, kind, bands, dtype, tile_px, compression
):
    made = []
    for name in ("a.tif", "b.tif"):
        KINDS[kind](tmp_path / name, 1100)
        with quiet(), rasterio.open(tmp_path / name) as source:
            assert (source.count, source.dtypes[0]) == (bands, dtype)
            assert source.block_shapes[0] == (tile_px, tile_px)
            assert source.profile["compress"].upper() == compression.split()[-1]
            made.append(source.read())
    assert np.array_equal(*made)
    assert (tmp_path / "a.tif").stat().st_size > made[0].nbytes / 20
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "b.tif"}


def test_the_bare_loop_reads_every_window_of_its_rows_once(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    KINDS["jpeg"](path, 700)
    seen = np.zeros((700, 700), int)
    read = rasterio.DatasetReader.read

    def counted(self, *args, window, **options):
        seen[window.toslices()] += 1
        return read(self, *args, window=window, **options)

    monkeypatch.setattr(rasterio.DatasetReader, "read", counted)
    decode(Rows(path=str(path), group_side_px=300, first_row=1, num_rows=2))
    assert not seen[:300].any()
    assert (seen[300:] == 1).all()


def test_both_ways_run_for_real_and_the_files_appear_whole(tmp_path):
    output = tmp_path / "made"
    settings = [f"output={output}", "images=[[jpeg, 300]]", "rounds=1", "group_side_px=64"]
    found = CliRunner().invoke(app, ["bench", "preprocess", *settings])
    assert found.exit_code == 0, found.output
    names = sorted(path.name for path in output.iterdir())
    assert names == ["preprocess.json", "preprocess.png", "preprocess.txt"]
    (point,) = json.loads((output / "preprocess.json").read_text())["points"]
    assert point["share"] > 0.0
    assert 0.0 < point["peak_gb"] < 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["images=[]"], "images is []"),
        (["images=[[bmp, 5000]]"], "images is 'bmp'"),
        (["rounds=0"], "rounds is 0"),
        (["scratch=/no/such/folder"], "scratch /no/such/folder is no folder"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(settings, said):
    found = CliRunner().invoke(app, ["bench", "preprocess", *settings])
    assert found.exit_code == 2
    assert said in found.output
    assert len(found.output.strip().splitlines()) == 1
