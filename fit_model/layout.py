"""From the flat list of groups to each image's own sequence of latents, and back.

Images with equally many groups need no padding and no mask. Otherwise every image gets as many
places as the largest one needs, and a mask hides the empty ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from fit_model.layers import SelfLayer
from fit_model.shapes import PerGroup

Rows = Shaped[Tensor, "g m e"]
"""Latents, or whatever else a group has some rows of."""


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """How the groups of a batch line up in their images; made once for a forward pass."""

    num_images: int
    groups_per_image: int
    """Groups of the largest image."""
    place: PerGroup | None
    """The group's place among num_images * groups_per_image; None when there are no empty ones."""
    may_attend: Bool[Tensor, "b 1 1 s"] | None
    """Which places hold latents that may be seen in global layers; None for all."""

    @classmethod
    def of(
        cls,
        image: PerGroup,
        *,
        num_images: int,
        latents_per_group: int,
    ) -> "ImageLayout":
        """The layout of groups that belong to the images `image`, which does not decrease."""
        counts = torch.bincount(image, minlength=num_images)
        sizes = counts.tolist()
        largest = max(sizes)
        numbers = torch.arange(largest, device=image.device)
        place, may_attend = None, None
        if min(sizes) < largest:
            first = counts.cumsum(0) - counts
            order = torch.arange(len(image), device=image.device) - first[image]
            place = image * largest + order
            present = numbers < counts[:, None]
            may_attend = present.repeat_interleave(latents_per_group, 1)[:, None, None, :]
        return cls(
            num_images=num_images, groups_per_image=largest, place=place, may_attend=may_attend
        )

    def join(self, latents: Rows) -> Shaped[Tensor, "b s e"]:
        """Each image's latents in one sequence; empty places hold zeros."""
        if self.place is not None:
            places = self.num_images * self.groups_per_image
            empty = latents.new_zeros(places, *latents.shape[1:])
            latents = empty.index_copy(0, self.place, latents)
        return latents.reshape(self.num_images, -1, latents.shape[-1])

    def split(self, sequences: Shaped[Tensor, "b s e"]) -> Rows:
        """The inverse of join: the sequences cut back into the flat list of groups."""
        places = self.num_images * self.groups_per_image
        latents = sequences.reshape(places, -1, sequences.shape[-1])
        return latents if self.place is None else latents.index_select(0, self.place)

    def told(self, layer: SelfLayer, sequences: Float[Tensor, "b s e"]) -> Float[Tensor, "b s e"]:
        """The sequences after a global layer, in which the latents of an image see each other."""
        return layer(sequences, self.may_attend)

    def before(self, latents: Rows) -> Rows:
        """For every group the latents of the group before it in its image; zeros for the first."""
        sequences = self.join(latents)
        shifted = functional.pad(sequences, (0, 0, latents.shape[1], 0))[:, : sequences.shape[1]]
        return self.split(shifted)

    def carried(self, last: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
        """What lies before each image's first group, of what lies in its last one: zeros."""
        return torch.zeros_like(last)

    def total(self, per_group: Float[Tensor, "g d"]) -> Float[Tensor, "b d"]:
        """Sum over each image's groups, always in the same order."""
        return self.join(per_group[:, None]).sum(1)
