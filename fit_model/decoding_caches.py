"""What an autoregressive decoder need not compute twice while it draws an image.

    per sub-pixel     all blocks' local layers and writes, for one token an image
    per patch         all blocks' reads and global layers, for the latents of one patch an image

A local layer keeps the keys and values of the patch's tokens so far. A global layer keeps those of
all earlier patches' latents. Layers of tssa keep three sums of what came before; layers of other
operators than these keep their normed inputs and mix all of them again. A write keeps the keys and
values of the latents of the patch before, zeros for the first patch. A read needs the patch's
tokens as the local layers left them.

Cost of a token of n in its patch, a = min(d, e), with softmax and beside the logits: a local layer
(4 + 2r) d^2 + 2 n d, a write 2a (d + m). Memory an image: 2 n d numbers a local layer, 2 m t e a
global one, for the t patches of the image.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fit_model.attention.tssa_causal import CausalTssa, TssaState
from fit_model.autoregressive import Decoder
from fit_model.block import Block
from fit_model.groups import Places
from fit_model.layers import FeedForwardLayer, Positions, SelfHeads, SelfLayer
from fit_model.moves import Exchange, Stack
from fit_model.shapes import DataTokens, Latents


class Kept:
    """Room for the rows of a sequence that grows along one axis, claimed once."""

    def __init__(self, *, axis: int, capacity: int) -> None:
        self.axis, self.capacity = axis, capacity
        self.length = 0
        self.room: Tensor | None = None
        self.rows = torch.empty(0)

    def add(self, rows: Tensor) -> Tensor:
        """All rows so far, these included; the next ones leave them as they are."""
        if self.room is None:
            shape = list(rows.shape)
            shape[self.axis] = self.capacity
            self.room = rows.new_empty(shape)
        count = rows.shape[self.axis]
        self.room.narrow(self.axis, self.length, count).copy_(rows)
        self.length += count
        self.rows = self.room.narrow(self.axis, 0, self.length)
        return self.rows

    def forget(self) -> None:
        """Start again in the same room."""
        self.length = 0


class LayerCache:
    """One transformer layer that is shown its positions a few at a time."""

    def __init__(self, layer: SelfLayer, *, capacity: int) -> None:
        self.layer = layer
        self.key = Kept(axis=2, capacity=capacity)
        self.value = Kept(axis=2, capacity=capacity)

    def __call__(self, x: Positions) -> Positions:
        """The next positions after this layer; they see all those before."""
        heads = cast(SelfHeads, self.layer.attention)
        normed = self.layer.norm(x)
        key, value = heads.keys_and_values(normed)
        x = x + heads.mix(normed, self.key.add(key), self.value.add(value))
        return x + self.layer.feed_forward(x)

    def forget(self) -> None:
        """A new sequence begins."""
        self.key.forget()
        self.value.forget()


class Continued:
    """A layer of tssa, whose sums go on where they were."""

    def __init__(self, layer: SelfLayer, *, capacity: int) -> None:
        self.layer = layer
        self.state: TssaState | None = None

    def __call__(self, x: Positions) -> Positions:
        """The next positions after this layer; they see all those before."""
        tssa = cast(CausalTssa, self.layer.attention)
        normed = self.layer.norm(x)
        mixed, self.state = tssa.extend(normed, self.state or tssa.start(normed))
        x = x + mixed
        return x + self.layer.feed_forward(x)

    def forget(self) -> None:
        """A new sequence begins."""
        self.state = None


class Again:
    """A layer of any other operator: all positions so far are mixed once more."""

    def __init__(self, layer: SelfLayer, *, capacity: int) -> None:
        self.layer = layer
        self.normed = Kept(axis=1, capacity=capacity)

    def __call__(self, x: Positions) -> Positions:
        """The next positions after this layer; they see all those before."""
        mixed = self.layer.attention(self.normed.add(self.layer.norm(x)))
        x = x + mixed[:, -x.shape[1] :]
        return x + self.layer.feed_forward(x)

    def forget(self) -> None:
        """A new sequence begins."""
        self.normed.forget()


Cache = LayerCache | Continued | Again
CACHES: dict[type[nn.Module], Callable[..., Cache]] = {
    SelfHeads: LayerCache,
    CausalTssa: Continued,
}


def cache(layer: SelfLayer, *, capacity: int) -> Cache:
    """What a layer remembers of the positions it has seen."""
    return CACHES.get(type(layer.attention), Again)(layer, capacity=capacity)


def caches(move: nn.Module, *, capacity: int) -> list[Cache | FeedForwardLayer]:
    """The layers of a move; those in which positions see each other remember them."""
    if not isinstance(move, Stack):
        return []
    layers = cast(Sequence[SelfLayer | FeedForwardLayer], move.layers)
    return [
        cache(layer, capacity=capacity) if isinstance(layer, SelfLayer) else layer
        for layer in layers
    ]


class WriteCache:
    """A write whose tokens all ask the same latents."""

    def __init__(self, write: Exchange, *, latents: Latents) -> None:
        self.layer, self.after = write.layer, write.after
        self.offer(latents)

    def offer(self, latents: Latents) -> None:
        """From now on tokens ask these."""
        self.key, self.value = self.layer.attention.keys_and_values(self.layer.key_norm(latents))

    def __call__(self, tokens: DataTokens) -> DataTokens:
        """Tokens that have seen the latents on offer."""
        asked = self.layer.attention.mix(self.layer.query_norm(tokens), self.key, self.value)
        tokens = tokens + asked
        return tokens if self.after is None else self.after(tokens)


class BlockCache:
    """One block, shown the tokens of a patch a few at a time, and its latents at the patch's end.

    Args:
        block: the block.
        num_tokens: of a patch.
        num_latents: of an image.
        before: latents that the first patch's write reads.
    """

    def __init__(self, block: Block, *, num_tokens: int, num_latents: int, before: Latents) -> None:
        self.local = caches(block.local, capacity=num_tokens)
        self.tokens = Kept(axis=1, capacity=num_tokens)
        self.read = block.read
        self.across = caches(block.across, capacity=num_latents)
        write = block.write
        self.write = WriteCache(write, latents=before) if isinstance(write, Exchange) else None

    def see(self, tokens: DataTokens) -> DataTokens:
        """The next tokens of the patch after this block."""
        for layer in self.local:
            tokens = layer(tokens)
        if self.write is None:
            return tokens
        self.tokens.add(tokens)
        return self.write(tokens)

    def close(self, latents: Latents) -> Latents:
        """The complete patch's latents after this block; the next patch's tokens will ask them."""
        latents = self.read(self.tokens.rows, latents).latents
        for layer in self.across:
            latents = layer(latents)
        if self.write is not None:
            self.write.offer(latents)
        return latents

    def forget(self) -> None:
        """The next patch begins; its tokens see those of this one no more."""
        self.tokens.forget()
        for layer in self.local:
            if not isinstance(layer, FeedForwardLayer):
                layer.forget()


class Cached:
    """A decoder that is asked for the logits of one sub-pixel after another.

    It catches up with whatever is already known, a patch at a time: the first patches of an image
    may be given, and a single new sub-pixel is the usual case.
    """

    def __init__(
        self,
        decoder: Decoder,
        places: Places,
        *,
        classes: Float[Tensor, "b k"] | None,
        num_tokens: int,
    ) -> None:
        groups = len(places.image) // places.num_images
        first = torch.arange(places.num_images, device=places.image.device) * groups
        self.decoder, self.classes, self.num_tokens = decoder, classes, num_tokens
        self.places = places.take(first)
        # added to nothing, a position is its row of the table or code
        nothing = decoder.embed.table.new_zeros(1, num_tokens, decoder.config.trunk.width)
        self.positions = decoder.token_position(nothing)
        self.latents = decoder.latents(places).unflatten(0, (-1, groups))
        zeros = torch.zeros_like(self.latents[:, 0])
        num_latents = groups * zeros.shape[1]
        self.blocks = [
            BlockCache(block, num_tokens=num_tokens, num_latents=num_latents, before=zeros)
            for block in decoder.trunk.blocks
        ]
        self.group, self.token = 0, 0

    def logits(self, inputs: Int64[Tensor, "b s"], place: int) -> Float[Tensor, "b v"]:
        """Logits of the sub-pixel at `place`, which grows from call to call."""
        group, token = divmod(place, self.num_tokens)
        while self.group < group:
            if self.token < self.num_tokens:
                self._see(inputs, end=self.num_tokens)
            self._close()
        tokens = self._see(inputs, end=token + 1)
        return self.decoder.logits(self.decoder.token_norm(tokens[:, -1:]))[:, 0]

    def _see(self, inputs: Int64[Tensor, "b s"], *, end: int) -> DataTokens:
        """The tokens of the patch up to `end` that were not seen yet, after all blocks."""
        start = self.group * self.num_tokens
        shown = inputs[:, start + self.token : start + end]
        tokens = self.decoder.embed(shown) + self.positions[:, self.token : end]
        tokens = self.decoder.marked(tokens, self.places, self.classes)
        for block in self.blocks:
            tokens = block.see(tokens)
        self.token = end
        return tokens

    def _close(self) -> None:
        """The patch is complete: its latents read it, and the next patch may read them."""
        latents = self.latents[:, self.group]
        for block in self.blocks[:-1]:
            latents = block.close(latents)
        for block in self.blocks:
            block.forget()
        self.group, self.token = self.group + 1, 0
