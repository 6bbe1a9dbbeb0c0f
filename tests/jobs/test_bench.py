"""`farreach bench decoding` compares as it says."""

import pytest
import torch
from typer.testing import CliRunner

from jobs import decoding_bench
from jobs.cli import app
from jobs.decoding_bench import DecodingBench, measure

TINY = ["side_px=4", "patch_px=2", "width=8", "heads=2", "num_levels=8", "latents_per_group=1"]


@pytest.fixture
def forgetful(monkeypatch):
    """A plain decoder that answers something else in the end."""

    def level(plain, drawn, uniform, *, place, sampling):
        return drawn[:, place] + int(place == drawn.shape[1] - 1)

    monkeypatch.setattr(decoding_bench, "plain_level", level)


def test_every_level_is_compared_and_equal():
    found = CliRunner().invoke(app, ["bench", "decoding", *TINY])
    assert found.exit_code == 0
    assert "equal levels: 48 of 48 compared" in found.output


def test_a_difference_ends_with_1(forgetful):
    found = CliRunner().invoke(app, ["bench", "decoding", *TINY])
    assert found.exit_code == 1
    assert "equal levels: 47 of 48 compared" in found.output
    assert "1 of 48 levels differ" in found.output


def test_a_share_of_the_places_is_spread_over_the_whole_sequence():
    assert decoding_bench.asked_places(10, 4) == [0, 3, 6, 9]
    assert decoding_bench.asked_places(3, None) == decoding_bench.asked_places(3, 8) == [0, 1, 2]


def test_the_benchs_decoder_draws_otherwise_after_another_beginning():
    config = DecodingBench(side_px=4, patch_px=2, width=8, heads=2, num_levels=8)
    decoder = decoding_bench.strong_decoder(config)
    plain = decoding_bench.Plain(
        decoder,
        decoding_bench.Places.in_one_row(num_images=1, num_groups=4, device=torch.device("cpu")),
        classes=None,
        num_tokens=config.num_tokens,
    )
    with torch.no_grad():
        first, second = (
            plain.logits(torch.full((1, 48), level), 47).softmax(-1) for level in (0, 1)
        )
    assert (first - second).abs().sum() > 0.1
    assert measure(config).equal == 48


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("side_px=33", "side_px 33 is no multiple of patch_px 8"),
        ("sampling.guidance=1.0", "guidance is 1, and this model knows no labels"),
        ("plain_places=0", "plain_places is 0"),
        ("depth=3", "no setting 'depth'"),
    ],
)
def test_settings_without_meaning_end_with_2_and_one_line(setting, said):
    found = CliRunner().invoke(app, ["bench", "decoding", setting])
    assert found.exit_code == 2
    assert said in found.output
