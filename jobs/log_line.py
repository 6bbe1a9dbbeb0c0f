"""The line that says how a training goes."""

from collections.abc import Mapping
from datetime import timedelta

FORMATS = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.1e}",
    "grad_norm": "norm {:.2g}",
    "speed/megapixels_per_s": "{:.2f} MP/s",
    "speed/tokens_per_s": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "memory/peak_gb": "{:.2f} GB",
}


def figures_of(metrics: Mapping[str, float]) -> str:
    """What is known of one step, in few words."""
    known = [text.format(metrics[name]) for name, text in FORMATS.items() if name in metrics]
    return "  ".join(known)


class Pace:
    """How long the rest will take, going by all that was done since the first step seen here.

    Checkpoints and validations count; steps before a restart do not.
    """

    def __init__(self, *, total_steps: int) -> None:
        self.total_steps = total_steps
        self._start: tuple[int, float] | None = None

    def left(self, step: int, *, now_s: float) -> str:
        """In hours, minutes and seconds; empty until a second step is seen."""
        first_step, first_s = self._start or (step, now_s)
        self._start = first_step, first_s
        if step <= first_step:
            return ""
        left_s = (now_s - first_s) / (step - first_step) * (self.total_steps - step)
        return f"{timedelta(seconds=round(left_s))} left"
