"""A course forwards and backwards, a stretch after the other, a chunk of groups at a time.

    forwards    every stretch: chunk by chunk inside the groups, then the meeting of all latents;
                kept are the tokens and latents that a stretch found and the latents it left
    backwards   every chunk and every global layer is computed again, with a graph of its own;
                the gradient of a stretch's tokens takes the place of these tokens

The first stretch keeps no tokens: they come from the pixels again.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from fit_model.body import Streams
from fit_model.bounded.gradients import Gradient, Gradients, Rows, leaf, plus
from fit_model.bounded.stores import Store
from fit_model.course import Course, Sums
from fit_model.recompute import recomputed
from fit_model.seeds import mixed, repeatable
from fit_model.shapes import Context, DataTokens, Latents, Outputs


@dataclass
class Kept:
    """The small tensors of a forward pass that its backward pass starts from."""

    context: Context | None = None
    found: list[Latents] = field(default_factory=list)
    """Latents of all groups as each stretch found them."""
    left: list[Latents] = field(default_factory=list)
    """As it left them for the meeting."""
    last: Latents = field(default_factory=lambda: torch.empty(0, 0, 0))
    """After the last meeting."""
    added: Sums = field(default_factory=lambda: torch.empty(0, 0))


class Passes:
    """One course, run forwards and then, at most once, backwards.

    Args:
        course: what is run.
        chunks: all groups, in parts that are there at once.
        store: where data tokens wait.
        num_kept: of how many stretches tokens are kept at once; 1 where nothing goes backwards.
        seed: of dropout; a chunk of a stretch draws the same both times.
        device: of the model.
    """

    def __init__(
        self,
        course: Course,
        chunks: Sequence[slice],
        *,
        store: Store,
        num_kept: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.course, self.trunk, self.images = course, course.trunk, course.images
        self.chunks, self.store, self.num_kept = chunks, store, num_kept
        self.seed, self.device = seed, device
        self.last = len(self.trunk.blocks) - 1
        self.kept = Kept()

    def latents(self) -> Latents:
        """Forwards to the end of the trunk; what the tokens end as is lost."""
        return self._forwards(added=None)

    def outputs(self) -> Outputs:
        """Forwards to the outputs of all images."""
        added = Rows(self.course.num_groups)
        latents = self._forwards(added=added)
        if self.course.ends_in == "latents":
            for groups in self.chunks:
                added.put(groups, self.course.leave(groups, latents[groups]))
        self.kept.last, self.kept.added = latents, cast(Tensor, added.all)
        return self.course.finish(self.images.total(self.kept.added))

    def _forwards(self, *, added: Rows | None) -> Latents:
        start = self.course.start()
        latents, self.kept.context = start.latents, start.context
        for number in range(self.last + 1):
            self.kept.found.append(latents)
            left, offered = Rows(self.course.num_groups), self._offered(number)
            for index, groups in enumerate(self.chunks):
                tokens = self._tokens(number, index)
                mine = [latents[groups]] if offered is None else [latents[groups], offered[groups]]
                streams = self._inside(number, index, tokens, *mine)
                left.put(groups, streams.latents)
                if number < self.last:
                    self.store.put(self._slot(number + 1, index), streams.tokens)
                elif added is not None and self.course.ends_in == "tokens":
                    added.put(groups, self.course.leave(groups, streams.tokens))
            self.kept.left.append(cast(Tensor, left.all))
            latents = self._meet(number, self.kept.left[number], self.kept.context)
        return latents

    def backwards(self, of_outputs: Outputs, gradients: Gradients) -> None:
        """Add the gradients of all parameters, given that of the outputs."""
        added, course = leaf(self.kept.added), self.course
        outputs = course.finish(self.images.total(added))
        of_added = cast(Tensor, gradients.through([outputs], [of_outputs], [added])[0])
        of_latents, of_offered = self._leaving(of_added, gradients), None
        of_context: Gradient = None
        for number in reversed(range(self.last + 1)):
            of_left, told = self._meeting(number, of_latents, of_offered, gradients)
            of_context = plus(of_context, told)
            of_latents, of_offered = self._stretch(number, of_left, of_added, gradients)
        start = course.start()
        gradients.through([start.latents], [of_latents], [])
        if start.context is not None:
            gradients.through([start.context], [of_context], [])

    def _leaving(self, of_added: Tensor, gradients: Gradients) -> Gradient:
        """The gradient of the latents that leave, if it is them that do."""
        if self.course.ends_in == "tokens":
            return None
        of_latents = Rows(self.course.num_groups)
        for groups in self.chunks:
            latents = leaf(self.kept.last[groups])
            added = self.course.leave(groups, latents)
            of_latents.put(groups, *gradients.through([added], [of_added[groups]], [latents]))
        return of_latents.all

    def _meeting(
        self, number: int, of_met: Gradient, of_offered: Gradient, gradients: Gradients
    ) -> tuple[Gradient, Gradient]:
        """The gradients of the latents that came to a meeting, and of what they were told."""
        inputs = [leaf(self.kept.left[number])]
        if self.kept.context is not None:
            inputs.append(leaf(self.kept.context))
        met = self._meet(number, *inputs)
        offered = self.trunk.offered(met, images=self.images)
        of_left, *of_context = gradients.through([met, offered], [of_met, of_offered], inputs)
        return of_left, of_context[0] if of_context else None

    def _stretch(
        self, number: int, of_left: Gradient, of_added: Tensor, gradients: Gradients
    ) -> tuple[Gradient, Gradient]:
        """The gradients of the latents that a stretch found, and of what they offered to it.

        Those of its tokens take the tokens' place in the store.
        """
        of_found, of_offered = Rows(self.course.num_groups), Rows(self.course.num_groups)
        offered = self._offered(number)
        for index, groups in enumerate(self.chunks):
            tokens = self._tokens(number, index)
            inputs = [leaf(self.kept.found[number][groups])]
            if offered is not None:
                tokens = leaf(tokens)
                inputs += [leaf(offered[groups]), tokens]
            streams = self._inside(number, index, tokens, *inputs[:2])
            outputs, of_outputs = [streams.latents], [None if of_left is None else of_left[groups]]
            if number < self.last:
                outputs.append(streams.tokens)
                of_outputs.append(self._waiting(number + 1, index))
                self.store.drop(self._slot(number + 1, index))
            elif self.course.ends_in == "tokens":
                outputs.append(self.course.leave(groups, streams.tokens))
                of_outputs.append(of_added[groups])
            found = gradients.through(outputs, of_outputs, inputs)
            of_found.put(groups, found[0])
            if number > 0:
                of_offered.put(groups, found[1])
                self.store.put(self._slot(number, index), cast(Tensor, found[2]))
        return of_found.all, of_offered.all

    def _inside(
        self,
        number: int,
        index: int,
        tokens: DataTokens,
        latents: Latents,
        offered: Latents | None = None,
    ) -> Streams:
        """A stretch of a chunk; chance repeats itself."""
        valid = self.course.valid(self.chunks[index])
        with self._chance(number, index):
            return self.trunk.inside(number, tokens, latents, offered=offered, valid=valid)

    def _meet(self, number: int, latents: Latents, context: Context | None = None) -> Latents:
        """A meeting, of whose layers only the inputs are kept; chance repeats itself."""
        with self._chance(number, len(self.chunks)):
            return self.trunk.meet(
                number, latents, images=self.images, context=context, run=recomputed
            )

    def _chance(self, number: int, index: int) -> AbstractContextManager[None]:
        seed = mixed(self.seed, number * (len(self.chunks) + 1) + index)
        return repeatable(seed, device=self.device)

    def _offered(self, number: int) -> Latents | None:
        """What a stretch begins by writing to its tokens; None for the first one."""
        found = self.kept.found[number]
        return None if number == 0 else self.trunk.offered(found, images=self.images)

    def _tokens(self, number: int, index: int) -> DataTokens:
        """What a stretch of a chunk starts from."""
        return (
            self.course.enter(self.chunks[index]) if number == 0 else self._waiting(number, index)
        )

    def _waiting(self, number: int, index: int) -> DataTokens:
        """What is kept of a chunk for a stretch; the next chunk's is on its way."""
        tokens = self.store.get(self._slot(number, index))
        if index + 1 < len(self.chunks):
            self.store.soon(self._slot(number, index + 1))
        return tokens

    def _slot(self, number: int, index: int) -> int:
        return number % self.num_kept * len(self.chunks) + index
