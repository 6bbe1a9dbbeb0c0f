"""Several workers that hold the groups of the same images between them.

    rank    0  1  2  3      groups = 2: ranks 0 and 1 share their images, ranks 2 and 3 theirs
    set     0  0  1  1
    place   0  1  0  1

Dropout is drawn by each worker on its own; a path that drop_path leaves out of a global layer is
left out for the latents of one worker.
"""

from datetime import timedelta

import torch.distributed as dist

from fit_model.crew import ALONE, Crew
from fit_model.layout import ImageLayout
from fit_model.parallel.config import ParallelConfig
from fit_model.parallel.layout import SharedLayout
from fit_model.parallel.links import Links
from fit_model.shapes import PerGroup


class GroupCrew(Crew):
    """A group set, as one of its workers sees it."""

    def __init__(self, links: Links) -> None:
        self.links = links

    def layout(self, image: PerGroup, *, num_images: int, latents_per_group: int) -> ImageLayout:
        """How this worker's groups line up with those of the others; every worker calls it."""
        return SharedLayout.among(
            image, num_images=num_images, latents_per_group=latents_per_group, links=self.links
        )


def form_crew(config: ParallelConfig) -> Crew:
    """The group set of a worker; every worker of the default process group calls it once.

    Raises:
        ValueError: the workers cannot be divided into sets of that size.
    """
    if config.groups == 1:
        return ALONE
    world, rank = dist.get_world_size(), dist.get_rank()
    if world % config.groups:
        raise ValueError(
            f"{world} workers cannot be divided into sets of parallel.groups {config.groups}: take "
            "a multiple"
        )
    timeout = timedelta(seconds=config.timeout_s)
    sets = [range(first, first + config.groups) for first in range(0, world, config.groups)]
    # everybody takes part in making every set
    made = [dist.new_group(list(each), timeout=timeout) for each in sets]
    number, place = divmod(rank, config.groups)
    return GroupCrew(Links(group=made[number], rank=place, size=config.groups))
