"""What a block of FIT does, a module a move: local, read, condition, across, write.

Every move calls its layers through `run`, plainly or so that they are recomputed for gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fit_model.attention.bixt import BidirectionalLayer
from fit_model.layers import CrossLayer, FeedForwardLayer, Positions, SelfLayer
from fit_model.layout import ImageLayout
from fit_model.recompute import Run
from fit_model.shapes import Context, DataTokens, Latents, ValidTokens


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The two streams of the trunk."""

    tokens: DataTokens
    latents: Latents


class Stack(nn.Module):
    """Layers of one stream, one after another."""

    def __init__(self, layers: Sequence[SelfLayer | FeedForwardLayer], *, run: Run) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = run


class Local(Stack):
    """Local layers: the data tokens of each group see each other, and nobody else."""

    def forward(self, tokens: DataTokens, valid: ValidTokens | None = None) -> DataTokens:
        """Tokens after all layers; tokens that are not valid are seen by nobody."""
        seen = keys_alone(valid)
        for layer in self.layers:
            tokens = self.run(layer, tokens, seen)
        return tokens


class Across(Stack):
    """Global layers: all latents of an image see each other."""

    def forward(self, latents: Latents, images: ImageLayout, run: Run | None = None) -> Latents:
        """Latents after all layers, called through `run` where it is given."""
        sequences = images.join(latents)
        for layer in cast(Sequence[SelfLayer], self.layers):
            sequences = (run or self.run)(partial(images.told, layer), sequences)
        return images.split(sequences)


class Exchange(nn.Module):
    """One stream asks another; a feed-forward may follow."""

    def __init__(self, layer: CrossLayer, *, after: FeedForwardLayer | None, run: Run) -> None:
        super().__init__()
        self.layer = layer
        self.after = after
        self.run = run

    def exchange(
        self,
        asking: Positions,
        offering: Float[Tensor, "b k c"],
        valid: Bool[Tensor, "b k"] | None = None,
    ) -> Positions:
        """`asking` after it has read those of `offering` that are valid."""
        asking = self.run(self.layer, asking, offering, keys_alone(valid))
        return asking if self.after is None else self.run(self.after, asking)


class Write(Exchange):
    """The data tokens of a group ask the latents on offer to it."""

    def forward(self, tokens: DataTokens, offered: Latents) -> DataTokens:
        """Tokens that have seen what was offered."""
        return self.exchange(tokens, offered)


class Apart(nn.Module):
    """No stream reads the other."""

    def forward(
        self, tokens: DataTokens, latents: Latents, valid: ValidTokens | None = None
    ) -> Streams:
        """Both as they were."""
        return Streams(tokens=tokens, latents=latents)


class Read(Exchange):
    """The latents of a group ask its data tokens."""

    def forward(
        self, tokens: DataTokens, latents: Latents, valid: ValidTokens | None = None
    ) -> Streams:
        """Latents that have seen those tokens of their group that are valid."""
        return Streams(tokens=tokens, latents=self.exchange(latents, tokens, valid))


class ReadBack(Exchange):
    """The data tokens of a group ask its latents."""

    def forward(
        self, tokens: DataTokens, latents: Latents, valid: ValidTokens | None = None
    ) -> Streams:
        """Tokens that have seen their group's latents."""
        return Streams(tokens=self.exchange(tokens, latents), latents=latents)


class ReadEachOther(nn.Module):
    """The latents and the data tokens of a group ask each other, both as they were before.

    A feed-forward of each stream may follow.
    """

    def __init__(
        self,
        layer: BidirectionalLayer,
        *,
        after_tokens: FeedForwardLayer | None,
        after_latents: FeedForwardLayer | None,
        run: Run,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.after_tokens = after_tokens
        self.after_latents = after_latents
        self.run = run

    def forward(
        self, tokens: DataTokens, latents: Latents, valid: ValidTokens | None = None
    ) -> Streams:
        """Latents that have seen the valid tokens of their group, tokens that have seen latents."""
        tokens, latents = self.run(self._asked, tokens, latents, valid)
        if self.after_tokens is not None:
            tokens = self.run(self.after_tokens, tokens)
        if self.after_latents is not None:
            latents = self.run(self.after_latents, latents)
        return Streams(tokens=tokens, latents=latents)

    def _asked(
        self, tokens: DataTokens, latents: Latents, valid: ValidTokens | None
    ) -> tuple[DataTokens, Latents]:
        got = self.layer(tokens, latents, valid)
        return got.tokens, got.latents


class Condition(nn.Module):
    """The latents of an image ask a few tokens that say what the image shall be."""

    def __init__(self, layer: CrossLayer, *, run: Run) -> None:
        super().__init__()
        self.layer = layer
        self.run = run

    def forward(self, latents: Latents, images: ImageLayout, context: Context) -> Latents:
        """Latents that have read their image's context."""
        return images.split(self.run(self.layer, images.join(latents), context))


class Skip(nn.Module):
    """A move that the layer string leaves out: the first input comes back as it is."""

    def forward(self, kept: Positions, *unused: object) -> Positions:
        """`kept`."""
        return kept


def keys_alone(valid: ValidTokens | None) -> Bool[Tensor, "g 1 1 n"] | None:
    """The attention mask that hides what is not valid from every query."""
    return None if valid is None else valid[:, None, None, :]
