"""Courses run in bounded memory, as one step of autograd whose gradients are exact.

    device   one chunk inside one stretch, with what a backward pass of it needs
             + the latents at every meeting, and what one global layer needs
             + parameters and a gradient of each in float32
    store    the data tokens of all groups, for every stretch but the first

Cost: the first pass and one more of everything for the backward pass. No tensor with the data
tokens of more than a chunk is on the device, unless they are kept there.
Source: ours; the schedule is that of recomputation, Chen et al. 2016, arXiv:1604.06174.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.disk import OnDisk
from fit_model.bounded.gradients import Gradient, Gradients
from fit_model.bounded.passes import Passes
from fit_model.bounded.stores import OnDevice, PinnedHost, Store
from fit_model.course import Course, Runner, Whole
from fit_model.crew import ALONE, Crew
from fit_model.shapes import Latents, Outputs


def _host(device: torch.device, folder: str | None) -> Store:
    # on the CPU the host's memory is the device's
    return PinnedHost(device) if device.type == "cuda" else OnDevice()


STORES: dict[str, Callable[[torch.device, str | None], Store]] = {
    "none": lambda device, folder: OnDevice(),
    "host": _host,
    "disk": lambda device, folder: OnDisk(device, folder=folder),
}


class Bounded(Runner):
    """So many groups at a time."""

    def __init__(self, config: BoundedConfig, *, crew: Crew = ALONE) -> None:
        self.config, self.crew = config, crew

    def chunks(self, num_groups: int) -> Sequence[slice]:
        """Neighbouring groups; the last ones may be fewer."""
        size = self.config.groups_a_chunk
        return [slice(start, min(start + size, num_groups)) for start in range(0, num_groups, size)]

    def outputs(self, course: Course) -> Outputs:
        """What the course gives for every image; its backward pass can be run once."""
        learning = [each for each in course.parameters() if each.requires_grad]
        if torch.is_grad_enabled() and learning:
            passes = self._passes(course, num_kept=len(course.trunk.blocks))
            return Recomputed.apply(passes, *learning)
        return self._without_gradient(course, Passes.outputs)

    def latents(self, course: Course) -> Latents:
        """The latents of all groups after the trunk, without a gradient."""
        return self._without_gradient(course, Passes.latents)

    def _without_gradient(self, course: Course, run: Callable[[Passes], Tensor]) -> Tensor:
        passes = self._passes(course, num_kept=1)
        try:
            with torch.no_grad():
                return run(passes)
        finally:
            passes.store.close()

    def _passes(self, course: Course, *, num_kept: int) -> Passes:
        device = next(course.model.parameters()).device
        return Passes(
            course,
            self.chunks(course.num_groups),
            store=STORES[self.config.offload](device, self.config.folder),
            num_kept=num_kept,
            # from the global generator, as dropout itself
            seed=int(torch.randint(2**62, ())),
            device=device,
        )


def runner_of(bounded: BoundedConfig | None, *, crew: Crew = ALONE) -> Runner:
    """So many groups at a time as the settings say; all at once without any."""
    return Whole(crew) if bounded is None else Bounded(bounded, crew=crew)


class Recomputed(torch.autograd.Function):
    """All of a course as one operation on the parameters, which get their gradients at once."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, *parameters: Tensor) -> Outputs:
        """The outputs."""
        ctx.passes, ctx.parameters = passes, parameters
        ctx.precision = autocast_of(passes.device)
        try:
            return passes.outputs()
        except BaseException:
            passes.store.close()
            raise

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_outputs: Outputs) -> tuple[Gradient, ...]:
        """The gradients of the parameters."""
        if ctx.passes is None:
            raise RuntimeError("a bounded course goes backwards once: run it forwards again")
        passes, ctx.passes = ctx.passes, None
        gradients = Gradients(ctx.parameters)
        try:
            with torch.enable_grad(), ctx.precision:
                passes.backwards(of_outputs, gradients)
        finally:
            passes.store.close()
        return None, *gradients.take()


def autocast_of(device: torch.device) -> torch.autocast:
    """The mixed precision that is in effect: what is computed again is computed as before."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled)
