"""Calls of jobs.tracking.Run as JSON can hold them, a line each."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from jobs.tracking import Run
from pipeline.storage import Location

CALLS = ("begin", "log_metrics", "log_json", "log_base64", "log_dataset", "set_tags", "end")
"""Methods of Run that may be kept."""
MEASURED = frozenset({"loss", "guard/around"})
"""Figures of which every step has one, and nothing else has any."""

Call = dict[str, Any]


def read_calls(place: Location) -> list[Call]:
    """What is kept in a file; a line that a kill has cut off is left out."""
    if not place.exists():
        return []
    calls = []
    for line in place.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            call = json.loads(line)
            if isinstance(call, dict) and call.get("call") in CALLS:
                calls.append(call)
    return calls


def send_calls(run: Run, calls: Sequence[Call]) -> None:
    """Make them; steps all in one request."""
    steps = [each for each in calls if each["call"] == "log_metrics"]
    if steps:
        run.log_points([(each["metrics"], each["step"], each["time_ms"]) for each in steps])
        return
    for call in calls:
        arguments = {name: value for name, value in call.items() if name != "call"}
        getattr(run, call["call"])(**arguments)


def is_step(call: Call) -> bool:
    """Whether a call holds the figures of a training step."""
    return call["call"] == "log_metrics" and not MEASURED.isdisjoint(call.get("metrics", {}))
