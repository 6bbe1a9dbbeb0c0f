"""How much of an image is on the device at once, and where the rest waits."""

from dataclasses import dataclass
from typing import Any, Literal

from fit_model import checks

Offload = Literal["none", "host", "disk"]


@dataclass(frozen=True, kw_only=True)
class BoundedConfig:
    """Groups go through the trunk a chunk at a time; what they need inside is computed again.

    Kept between the passes, for L tokens of width d and M latents of width e: L d numbers a stretch
    but for the first, where `offload` says, and 2 M e a stretch on the device.
    """

    groups_a_chunk: int = 16
    """Groups of the trunk that are on the device at once; of an autoregressive model patches."""
    offload: Offload = "none"
    """Where data tokens wait between two stretches: on the device, in the host's memory, in a
    file."""
    folder: str | None = None
    """Of that file, which has no name and vanishes with the process; None for the system's."""

    def __post_init__(self) -> None:
        checks.positive(groups_a_chunk=self.groups_a_chunk)
        checks.one_of(("none", "host", "disk"), offload=self.offload)
        if self.folder is not None and self.offload != "disk":
            raise ValueError(
                f"folder is {self.folder!r}, but offload {self.offload!r} writes no file: leave "
                "folder out, or take offload 'disk'"
            )


def require_chunks(bounded: BoundedConfig | None, *, face: Any) -> None:
    """Refuse a face that cannot go a chunk of groups at a time, where that is wanted."""
    if bounded is not None and face.kind == "vix":
        raise ValueError("a model of kind 'vix' sees its images whole: leave bounded out")
