"""The line that says how a training goes holds what is known, and how long the rest takes."""

from jobs.log_line import Pace, figures_of

KNOWN = {
    "loss": 0.69312,
    "lr": 3e-4,
    "speed/megapixels_per_s": 1.234,
    "speed/tokens_per_s": 12345.6,
    "memory/peak_gb": 0.5,
    "time/step_s": 2.0,
}


def test_the_line_holds_what_is_known_and_no_more():
    told = "loss 0.6931  lr 3.0e-04  1.23 MP/s  12,346 tokens/s  0.50 GB"
    assert figures_of(KNOWN) == told
    more = figures_of(KNOWN | {"grad_norm": 0.5237, "mfu": 0.3412})
    assert "  norm 0.52  " in more
    assert "  MFU 34.1%  " in more


def test_the_rest_takes_as_long_as_steps_have_taken_since_this_process_saw_the_first():
    pace = Pace(total_steps=1000)
    assert pace.left(500, now_s=10_000.0) == ""  # continued from step 499 of an earlier process
    assert pace.left(510, now_s=10_020.0) == "0:16:20 left"
    assert pace.left(600, now_s=10_300.0) == "0:20:00 left"
    assert pace.left(1000, now_s=11_000.0) == "0:00:00 left"
