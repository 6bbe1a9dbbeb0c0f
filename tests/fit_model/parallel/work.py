"""What the workers of a test's world do."""

import os
import time
from functools import cache, partial
from unittest.mock import patch

import torch
import torch._dynamo  # recomputation asks for it: here once, not in every worker
import torch.distributed as dist

from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.engine import Bounded
from fit_model.course import Runner, Whole
from fit_model.crew import Crew
from fit_model.parallel.config import ParallelConfig
from fit_model.parallel.crew import form_crew
from fit_model.parallel.links import Links
from fit_model.parallel.shares import share_of
from tests.fit_model.parallel.cases import CASES


@cache
def crew_of(groups: int) -> Crew:
    return form_crew(ParallelConfig(groups=groups, timeout_s=60.0))


def images_of(number: int, *, num_sets: int, num_images: int) -> range:
    """The images of one group set: neighbours."""
    return range(num_images * number // num_sets, num_images * (number + 1) // num_sets)


def runner_of(crew: Crew, bounded: dict | None) -> Runner:
    if bounded is None:
        return Whole(crew)
    return Bounded(BoundedConfig(**bounded), crew=crew)


def step(name: str, groups: int, bounded: dict | None = None):
    """Losses and the gradients summed over all workers, of a case shared by sets of workers."""
    crew, case = crew_of(groups), CASES[name]()
    number, place = divmod(dist.get_rank(), groups)
    num_sets = dist.get_world_size() // groups
    chosen = images_of(number, num_sets=num_sets, num_images=len(case.images))
    losses, gradients = case.step(
        chosen,
        runner=runner_of(crew, bounded),
        cut=partial(share_of, worker=place, num_workers=groups, unit=case.unit),
        share=1 / groups,
    )
    for gradient in gradients.values():
        if gradient is not None:
            dist.all_reduce(gradient)
    arrays = {name: None if each is None else each.numpy() for name, each in gradients.items()}
    return chosen, losses.numpy(), arrays if dist.get_rank() == 0 else {}


def leave_alone(how: str) -> str:
    """The first worker begins a step; the other one does not come to the first global layer."""
    crew = form_crew(ParallelConfig(groups=2, timeout_s=2.0))
    case = CASES["encoder, latents"]()
    cut = partial(share_of, worker=dist.get_rank(), num_workers=2, unit="groups")
    if dist.get_rank() == 1:
        crew.layout(cut(case.images[0]).image, num_images=1, latents_per_group=3)
        LEAVING[how]()
    case.step(range(1), runner=Whole(crew), cut=cut)
    return "went on"


LEAVING = {"dies": lambda: os._exit(1), "hangs": lambda: time.sleep(60.0)}


def travelled(name: str) -> int:
    """The most numbers that a worker handed to a collective of a step, there and back."""
    sizes = []

    def counted(collective):
        def call(links, values, *, of):
            sizes.append(values.numel())
            return collective(links, values, of=of)

        return call

    with patch.multiple(Links, gather=counted(Links.gather), reduce=counted(Links.reduce)):
        step(name, dist.get_world_size())
    return max(sizes)


def bring(name: str, runs: list[slice]) -> None:
    """A step in which the workers hold these runs of the first image."""
    crew, case = crew_of(len(runs)), CASES[name]()
    case.step(range(1), runner=Whole(crew), cut=lambda batch: batch.part(runs[dist.get_rank()]))


def line_up(images: list[list[int]]) -> None:
    """The layout of workers whose groups belong to these of two images."""
    mine = torch.tensor(images[dist.get_rank()])
    crew_of(len(images)).layout(mine, num_images=2, latents_per_group=1)
