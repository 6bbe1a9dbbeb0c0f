"""What happened to a training, beside its steps."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened, as the record of the run tells it."""

    kind: str
    """Short and lasting, as "worker lost": people search for it."""
    step: int
    """Finished steps when it happened, as far as was known."""
    text: str
    """One line for people."""
    time_s: float = field(default_factory=time.time)
    """Since 1970."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able details for programs."""
