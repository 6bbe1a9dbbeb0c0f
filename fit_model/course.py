"""A pass of a model over a batch, as the parts it falls into, and the plain way to run it.

    start     all groups' latents, and what each image is told
    enter     pixels of some groups -> their data tokens
    trunk     stretches inside these groups, meetings of all latents of an image
    leave     streams of some groups -> what each adds to its image
    finish    an image's sums -> its outputs

Between two meetings groups do not see each other, and latents are small: so whoever runs a course
decides how many groups are there at a time. WHOLE takes all at once and leaves the rest to
autograd; `fit_model.bounded` takes a few.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fit_model.body import Trunk
from fit_model.crew import ALONE, Crew
from fit_model.layout import ImageLayout
from fit_model.moves import Streams
from fit_model.shapes import Context, DataTokens, Latents, Outputs, ValidTokens

Sums = Float[Tensor, "g z"]
"""What each group adds to its image, in float32 at least; the last column counts it."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is there before any pixel has been seen."""

    latents: Latents
    """Of all groups."""
    context: Context | None


class Course(ABC):
    """One pass; every part may be asked for again and gives the same."""

    model: nn.Module
    """Whose parameters the parts use."""
    trunk: Trunk
    images: ImageLayout
    """How all groups line up in their images."""
    num_groups: int
    ends_in: Literal["tokens", "latents"] = "tokens"
    """The stream that `leave` takes."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """Those that the outputs depend on."""
        return list(self.model.parameters())

    @abstractmethod
    def start(self) -> Start:
        """The latents of all groups, and the context of all images."""

    @abstractmethod
    def enter(self, groups: slice) -> DataTokens:
        """The data tokens of these groups; only their pixels are read, and moved to the device."""

    def valid(self, groups: slice) -> ValidTokens | None:
        """Which tokens of these groups show something of their image; None for all."""
        return None

    @abstractmethod
    def leave(self, groups: slice, stream: DataTokens | Latents) -> Sums:
        """What these groups add to their images, of a stream as the trunk left it."""

    @abstractmethod
    def finish(self, sums: Float[Tensor, "b z"]) -> Outputs:
        """The outputs of all images, of the sums over their groups."""


class Runner(ABC):
    """How a course is run."""

    crew: Crew = ALONE
    """Who holds the images' other groups."""

    @abstractmethod
    def chunks(self, num_groups: int) -> Sequence[slice]:
        """All groups, in parts that are there at once."""

    @abstractmethod
    def outputs(self, course: Course) -> Outputs:
        """What the course gives for every image, ready for a backward pass."""

    @abstractmethod
    def latents(self, course: Course) -> Latents:
        """The latents of all groups after the trunk, without a gradient."""


class Whole(Runner):
    """All groups at once; autograd keeps what it needs."""

    def __init__(self, crew: Crew = ALONE) -> None:
        self.crew = crew

    def chunks(self, num_groups: int) -> Sequence[slice]:
        """A single one."""
        return [slice(0, num_groups)]

    def outputs(self, course: Course) -> Outputs:
        """What the course gives for every image."""
        streams, everyone = self._streams(course), slice(0, course.num_groups)
        stream = streams.tokens if course.ends_in == "tokens" else streams.latents
        return course.finish(course.images.total(course.leave(everyone, stream)))

    def latents(self, course: Course) -> Latents:
        """The latents of all groups after the trunk, without a gradient."""
        with torch.no_grad():
            return self._streams(course).latents

    def _streams(self, course: Course) -> Streams:
        everyone = slice(0, course.num_groups)
        tokens, start = course.enter(everyone), course.start()
        return course.trunk(
            tokens,
            start.latents,
            images=course.images,
            valid=course.valid(everyone),
            context=start.context,
        )


WHOLE = Whole()
