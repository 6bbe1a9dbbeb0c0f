"""Who sees whom in a trunk, and how the tokens and latents lie that do."""

import math
from dataclasses import dataclass
from typing import Literal

from fit_model.attention.place import Place
from fit_model.trunk_config import TrunkConfig

LatentMask = Literal["none", "causal"]
"""Whether latents see all of their image, or their own group and the groups before it."""
Flow = Literal["open", "conditioned", "causal"]
"""Who sees whom. "open": the encoder. "conditioned": latents also read a context, after the data.
"causal": no token sees a later one, and groups read the latents of the group before them."""


ANYWHERE = Place()


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Who sees whom, and how long the sequences are in which they do."""

    flow: Flow = "open"
    local: Place = ANYWHERE
    """Of the data tokens of a group."""
    across: Place = ANYWHERE
    """Of the latents of an image."""


def square_place(num_tokens: int, *, prefix: int = 0) -> Place:
    """Of the patches of a group, which lie in a square, after so many other tokens."""
    side = math.isqrt(num_tokens)
    grid = (side, side) if side * side == num_tokens else None
    return Place(num_tokens=prefix + num_tokens, grid=grid, prefix=prefix)


def latents_place(config: TrunkConfig, *, num_groups: int | None, latent_mask: LatentMask) -> Place:
    """Of the latents of an image, for models that know how many groups an image has at most."""
    group = config.latents_per_group
    known = None if num_groups is None else num_groups * group
    if latent_mask == "causal":
        return Place(num_tokens=known, causal="chunks", chunk=group)
    return Place(num_tokens=known)
