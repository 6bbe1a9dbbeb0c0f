"""How the groups of one worker line up with those of the others, and how their latents meet.

A global layer of latents that several workers hold:

    normed  = norm(own latents)
    softmax    own queries attend to the keys and values of all, which are gathered
    others     the normed latents of all are gathered and mixed; a worker keeps its own rows
    own latents <- own latents + mixed, then feed-forward

With softmax only keys and values travel, and each worker does its share of the work; any other
operator every worker computes for all latents. Data tokens never travel.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fit_model.attention.chunks import InChunks
from fit_model.layers import SelfHeads, SelfLayer
from fit_model.layout import ImageLayout, Rows
from fit_model.parallel.links import Links
from fit_model.parallel.shares import runs
from fit_model.shapes import Latents, PerGroup


@dataclass(frozen=True, kw_only=True)
class SharedLayout(ImageLayout):
    """The layout of a worker's own groups, and what it shares with the others."""

    links: Links
    everyone: ImageLayout
    """Of all groups, image by image, those of the first worker first."""
    own: list[slice]
    """Of every image, its groups among those of this worker."""
    all: list[slice]
    """Of every image, its groups among everyone's."""
    first: list[int]
    """Of every image, where this worker's groups begin among everyone's."""
    largest: int
    """Groups of the worker that has most."""
    order: PerGroup
    """Where each of everyone's groups lies among the gathered ones."""
    mine: PerGroup
    """Where this worker's groups lie among everyone's."""

    @classmethod
    def among(
        cls, image: PerGroup, *, num_images: int, latents_per_group: int, links: Links
    ) -> "SharedLayout":
        """The layout of a worker whose groups belong to the images `image`; every worker calls it.

        ValueError, on all workers, for an image of which one of them holds nothing.
        """
        counts = links.gather(
            torch.bincount(image, minlength=num_images), of="the numbers of groups"
        ).cpu()
        if int(counts.min()) == 0:
            raise ValueError(
                f"{links.size} group workers share images, and one of them holds no group of an "
                "image: take fewer group workers than an image has groups"
            )
        largest = int(counts.sum(1).max())
        # a run is what a worker holds of an image; all runs, image by image
        sizes = counts.T.flatten()
        run = torch.arange(len(sizes)).repeat_interleave(sizes)
        starts = sizes.cumsum(0) - sizes
        inside = torch.arange(len(run)) - starts[run]
        before = counts.cumsum(1) - counts + largest * torch.arange(links.size)[:, None]
        settings = {"num_images": num_images, "latents_per_group": latents_per_group}
        own = ImageLayout.of(image, **settings)
        return cls(
            num_images=own.num_images,
            groups_per_image=own.groups_per_image,
            place=own.place,
            may_attend=own.may_attend,
            links=links,
            everyone=ImageLayout.of((run // links.size).to(image.device), **settings),
            own=runs(counts[links.rank].tolist()),
            all=runs(counts.sum(0).tolist()),
            first=starts[links.rank :: links.size].tolist(),
            largest=largest,
            order=(before.T.flatten()[run] + inside).to(image.device),
            mine=(run % links.size == links.rank).nonzero()[:, 0].to(image.device),
        )

    def told(self, layer: SelfLayer, sequences: Float[Tensor, "b s e"]) -> Float[Tensor, "b s e"]:
        """The own latents after a global layer, in which those of all workers see each other."""
        normed = self.split(layer.norm(sequences))
        mixer = layer.attention
        if isinstance(mixer, SelfHeads):
            mixed = self._asked(mixer, normed)
        else:
            mixed = self._mixed(mixer, normed)
        return layer.told(sequences, self.join(mixed))

    def before(self, latents: Rows) -> Rows:
        """For every group the latents of the group before it, whoever holds that."""
        ends = torch.tensor([each.stop - 1 for each in self.own], device=latents.device)
        starts = torch.tensor([each.start for each in self.own], device=latents.device)
        carried = self.carried(latents.index_select(0, ends))
        return super().before(latents).index_add(0, starts, carried)

    def carried(self, last: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b ..."]:
        """What lies in each image's last group of the worker before; zeros for the first one."""
        return self.links.rows_before(last, of="what lies before an image's groups")

    def total(self, per_group: Float[Tensor, "g d"]) -> Float[Tensor, "b d"]:
        """Sum over each image's groups, those of all workers."""
        return self.links.sum(super().total(per_group), of="the sums over images")

    def _asked(self, heads: SelfHeads, normed: Latents) -> Latents:
        """Own queries, keys and values of all."""
        query = heads.query(normed)
        pairs = self._everyones(heads.key_value(normed), of="keys and values")
        looks_back = isinstance(heads.attend, InChunks)
        found = []
        for own, all_of_it, first in zip(self.own, self.all, self.first, strict=True):
            # who looks back takes its own latents for the last ones
            end = first + own.stop - own.start if looks_back else all_of_it.stop
            key, value = heads.apart(pairs[all_of_it.start : end].flatten(0, 1)[None])
            found.append(heads.read(query[own].flatten(0, 1)[None], key, value)[0])
        return heads.out(torch.cat(found).unflatten(0, normed.shape[:2]))

    def _mixed(self, mixer: torch.nn.Module, normed: Latents) -> Latents:
        """All latents, mixed here as they are everywhere; own rows are kept."""
        everyone = self.everyone
        sequences = everyone.join(self._everyones(normed, of="latents"))
        mixed = everyone.split(mixer(sequences, everyone.may_attend))
        return mixed.index_select(0, self.mine)

    def _everyones(self, rows: Rows, *, of: str) -> Rows:
        """The rows of all groups, image by image."""
        filling = rows.new_zeros(self.largest - len(rows), *rows.shape[1:])
        gathered = self.links.all_rows(torch.cat([rows, filling]), of=f"{of} of a global layer")
        return gathered.flatten(0, 1).index_select(0, self.order)
