"""Drawing images from an autoregressive decoder, one sub-pixel after another.

    inputs[s] = level of sub-pixel s - 1, 0 for the first
    level s   = choose(logits of place s given inputs[0 .. s]; the image's random number s)

"plain" runs the whole decoder for every sub-pixel: the reference, written to be read. "cached"
gives the same levels and computes nothing twice. The official code has neither.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fit_model.autoregressive import Decoder
from fit_model.choosing import DecodingConfig, choose, uniforms
from fit_model.decoding_caches import Cached
from fit_model.dropout import without_dropout
from fit_model.groups import Places
from fit_model.subpixels import Levels

KnownLevels = Int64[Tensor, "_ n"]
"""Levels of the first patches of every image, equally many each."""


class Reader(Protocol):
    """A decoder that says how the next sub-pixel of every image may go on."""

    def logits(self, inputs: Int64[Tensor, "b s"], place: int) -> Float[Tensor, "b v"]:
        """Logits of the sub-pixel at `place`; inputs after that place are not known yet."""


class Plain:
    """The whole decoder for every sub-pixel: what is not known yet is 0, and nobody sees it.

    Cost of an image: as many passes over it as it has sub-pixels.
    """

    def __init__(
        self,
        decoder: Decoder,
        places: Places,
        *,
        classes: Float[Tensor, "b k"] | None,
        num_tokens: int,
    ) -> None:
        self.decoder, self.places, self.classes = decoder, places, classes
        self.num_tokens = num_tokens
        self.images = decoder.layout(places)

    def logits(self, inputs: Int64[Tensor, "b s"], place: int) -> Float[Tensor, "b v"]:
        """Logits of the sub-pixel at `place`."""
        patches = inputs.reshape(-1, self.num_tokens)
        tokens = self.decoder(patches, self.places, self.images, classes=self.classes)
        sequences = self.images.join(tokens)
        return self.decoder.logits(sequences[:, place : place + 1])[:, 0]


READERS: dict[str, Callable[..., Reader]] = {"plain": Plain, "cached": Cached}


@torch.no_grad()
def decode(
    decoder: Decoder,
    places: Places,
    *,
    num_tokens: int,
    classes: Float[Tensor, "b k"] | None,
    seeds: Int64[Tensor, " b"],
    config: DecodingConfig,
    known: KnownLevels | None = None,
    reader: str = "cached",
    progress: Callable[[], None] | None = None,
) -> Levels:
    """Levels of the patches of new images; each image depends on its own seed and class only.

    Args:
        decoder: with its dropout left out, whatever mode it is in.
        places: of patches, in the order of their images' sequences; equally many an image.
        num_tokens: sub-pixels of a patch.
        classes: one-hot rows for a decoder that knows classes.
        seeds: one an image; sub-pixel s has the same random number whatever is known before it.
        config: how levels are chosen.
        known: levels of the first patches of every image, equally many each; they stay as given.
        reader: a name of READERS.
        progress: called after every patch that is drawn.
    """
    num_images, num_patches = places.num_images, patches_an_image(places)
    num_known = known_patches(known, num_images=num_images, num_patches=num_patches)
    device, length = places.image.device, num_patches * num_tokens
    uniform = uniforms(seeds, count=length).to(device)
    if config.guidance != 0.0 and classes is not None:
        places, classes = twice(places), torch.cat([classes, torch.zeros_like(classes)])
    # one place longer than the sequence: what is drawn at place s is the input of place s + 1
    inputs = torch.zeros(places.num_images, length + 1, dtype=torch.int64, device=device)
    if known is not None:
        given = known.reshape(num_images, -1)
        inputs[:, 1 : given.shape[1] + 1] = given.repeat(len(inputs) // num_images, 1)
    with without_dropout(decoder):
        read = READERS[reader](decoder, places, classes=classes, num_tokens=num_tokens)
        for place in range(num_known * num_tokens, length):
            logits = read.logits(inputs[:, :-1], place)
            level = choose(logits, uniform[:, place], config=config)
            inputs[:, place + 1] = level.repeat(len(inputs) // num_images)
            if progress is not None and (place + 1) % num_tokens == 0:
                progress()
    return inputs[:num_images, 1:].reshape(-1, num_tokens)


def patches_an_image(places: Places) -> int:
    """How many patches every image has; ValueError where images differ."""
    counts = torch.bincount(places.image, minlength=places.num_images)
    if (counts != counts[0]).any():
        raise ValueError(
            f"images of {sorted(set(counts.tolist()))} patches cannot be drawn together: "
            "draw images of one size at a time"
        )
    return int(counts[0])


def known_patches(known: KnownLevels | None, *, num_images: int, num_patches: int) -> int:
    """How many patches of every image are given."""
    if known is None:
        return 0
    if len(known) % num_images or len(known) > num_images * num_patches:
        raise ValueError(
            f"{len(known)} known patches do not fit {num_images} images of {num_patches} patches: "
            "give equally many of every image"
        )
    return len(known) // num_images


def twice(places: Places) -> Places:
    """The same images once more, behind the others."""
    return Places(
        image=torch.cat([places.image, places.image + places.num_images]),
        row=places.row.repeat(2),
        column=places.column.repeat(2),
        grid_rows=places.grid_rows.repeat(2),
        grid_columns=places.grid_columns.repeat(2),
    )
