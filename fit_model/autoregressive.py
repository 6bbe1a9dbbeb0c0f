"""FIT as an autoregressive decoder: every sub-pixel predicted from all those before it.

    inputs  = levels of an image, shifted by one
    tokens  = table[inputs] + position in the patch          [+ table of classes, ours]
    latents = position of the patch
    tokens  = LN(trunk(tokens, latents)), looking back only
    logits  = tokens table^T + bias;   loss = cross-entropy / ln 2, bits a sub-pixel

A group is one patch. Its tokens see what came before them in the patch, and, from the first write
on, the latents of the patch before, which have seen all patches up to theirs.
Source: Chen & Li 2023, arXiv:2305.12689; google-research/pix2seq, class FITAR.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fit_model import checks
from fit_model.attention.place import Place
from fit_model.body import Trunk
from fit_model.crew import ALONE, Crew
from fit_model.groups import Places
from fit_model.layers import layer_norm
from fit_model.layout import ImageLayout
from fit_model.positions import LATENT_POSITIONS, TOKEN_POSITIONS, check_positions, table
from fit_model.reach import Reach, latents_place
from fit_model.recompute import CHECKPOINTING
from fit_model.shapes import DataTokens, Latents
from fit_model.subpixels import ORDERS, Levels, number_in_order
from fit_model.trunk_config import TrunkConfig

LOGITS_A_PART = 1 << 24
"""Numbers: how many logits are there at once where they need not be kept."""

Logits = Float[Tensor, "g n v"]


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig:
    """The decoder around a trunk: order, levels and positions."""

    kind: Literal["autoregressive"] = "autoregressive"
    patch_px: int
    """A group of the trunk is one patch of this side; its sub-pixels are the data tokens."""
    trunk: TrunkConfig
    order: Literal["snake", "raster"] = "snake"
    num_levels: int = 256
    """Levels of a sub-pixel, spread evenly over the pixels' range."""
    embedding: Literal["shared", "separate"] = "shared"
    """"separate" has a table of its own for the logits."""
    output_bias: Literal["learned", "none"] = "learned"
    token_position: Literal["learned", "sin_cos", "sin_cos_2d"] = "learned"
    latent_position: Literal["learned", "sin_cos_2d", "coordinate"] = "coordinate"
    """"learned" and "sin_cos_2d" are the official ones and know one number of patches only."""
    num_groups: int | None = None
    """Patches of every image; only for what depends on it, None otherwise."""
    label_dropout: float = 0.0
    """How often a label is withheld in training, so that guidance has something to compare with."""

    def __post_init__(self) -> None:
        checks.positive(patch_px=self.patch_px)
        checks.one_of(("autoregressive",), kind=self.kind)
        checks.one_of(ORDERS, order=self.order)
        checks.one_of(("shared", "separate"), embedding=self.embedding)
        checks.one_of(("learned", "none"), output_bias=self.output_bias)
        check_positions(
            token_position=self.token_position,
            latent_position=self.latent_position,
            num_groups=self.num_groups,
            counted="patches",
        )
        checks.rate(label_dropout=self.label_dropout)
        if not 2 <= self.num_levels <= 65536:
            raise ValueError(f"num_levels is {self.num_levels}: take 2 to 65536")
        self.trunk.require_causal_tokens()
        self.trunk.require_causal_latents()

    def reach(self, num_tokens: int) -> Reach:
        """Who sees whom, when a patch has so many sub-pixels."""
        local = Place(num_tokens=num_tokens, causal="tokens")
        across = latents_place(self.trunk, num_groups=self.num_groups, latent_mask="causal")
        return Reach(flow="causal", local=local, across=across)


class Vocabulary(nn.Module):
    """One learned row a level."""

    def __init__(self, *, num_levels: int, width: int) -> None:
        super().__init__()
        self.table = table(num_levels, width)

    def forward(self, levels: Levels) -> DataTokens:
        """The rows of these levels."""
        return functional.embedding(levels, self.table)


class Decoder(nn.Module):
    """Embedding, positions, a trunk that looks back only, output norm and logits.

    Args:
        config: the decoder's settings.
        num_tokens: sub-pixels of a patch.
        num_classes: 0 for a model that takes no label.
    """

    def __init__(
        self, config: AutoregressiveConfig, *, num_tokens: int, num_classes: int = 0
    ) -> None:
        super().__init__()
        trunk = config.trunk
        self.config = config
        self.run = CHECKPOINTING[trunk.checkpointing]
        self.embed = Vocabulary(num_levels=config.num_levels, width=trunk.width)
        self.token_position = TOKEN_POSITIONS[config.token_position](
            num_tokens=num_tokens, width=trunk.width
        )
        self.classes = table(num_classes, trunk.width) if num_classes else None
        self.latent_position = LATENT_POSITIONS[config.latent_position](
            num_groups=config.num_groups,
            latents_per_group=trunk.latents_per_group,
            width=trunk.latent_width,
        )
        self.trunk = Trunk(trunk, reach=config.reach(num_tokens))
        self.token_norm = layer_norm(trunk.width)
        self.read_out = (
            Vocabulary(num_levels=config.num_levels, width=trunk.width)
            if config.embedding == "separate"
            else None
        )
        self.output_bias = table(config.num_levels) if config.output_bias == "learned" else None

    def layout(self, places: Places, *, crew: Crew = ALONE) -> ImageLayout:
        """How patches, in order, line up in their images."""
        return crew.layout(
            places.image,
            num_images=places.num_images,
            latents_per_group=self.config.trunk.latents_per_group,
        )

    def forward(
        self,
        inputs: Levels,
        places: Places,
        images: ImageLayout,
        *,
        classes: Float[Tensor, "b k"] | None = None,
    ) -> DataTokens:
        """Normed data tokens, one for the sub-pixel that follows each input.

        Args:
            inputs: levels, already shifted, patches in the order of their images' sequences.
            places: where those patches lie.
            images: `layout(places)`.
            classes: one-hot rows; a row of zeros asks for no class.
        """
        tokens = self.tokens(inputs, places, classes)
        streams = self.trunk(tokens, self.latents(places), images=images)
        return self.token_norm(streams.tokens)

    def tokens(
        self, inputs: Levels, places: Places, classes: Float[Tensor, "b k"] | None
    ) -> DataTokens:
        """Data tokens before the trunk."""
        return self.marked(self.token_position(self.embed(inputs)), places, classes)

    def marked(
        self, tokens: DataTokens, places: Places, classes: Float[Tensor, "b k"] | None
    ) -> DataTokens:
        """Tokens that carry the class of their image."""
        if self.classes is None or classes is None:
            return tokens
        rows = classes.to(self.classes.dtype) @ self.classes
        return tokens + rows[places.image][:, None]

    def latents(self, places: Places) -> Latents:
        """Latents before the trunk; tables number patches along the sequence."""
        like = self.token_norm.weight
        if self.config.latent_position == "coordinate":
            return self.latent_position(places, like)
        number = number_in_order(places, order=self.config.order)
        along = Places(
            image=places.image,
            row=torch.zeros_like(number),
            column=number,
            grid_rows=torch.ones_like(places.grid_rows),
            grid_columns=places.grid_rows * places.grid_columns,
        )
        return self.latent_position(along, like)

    def logits(self, tokens: DataTokens) -> Logits:
        """One logit a level."""
        rows = (self.embed if self.read_out is None else self.read_out).table
        return functional.linear(tokens, rows, self.output_bias)

    def nats(self, tokens: DataTokens, levels: Levels) -> Float[Tensor, " g"]:
        """-ln of the probability of what is there, summed over each patch."""
        return torch.cat([self.run(self._nats, *part) for part in self._parts(tokens, levels)])

    def _parts(self, tokens: DataTokens, levels: Levels) -> Iterator[tuple[DataTokens, Levels]]:
        """Tokens and levels so many groups at a time that the logits of a part stay small.

        Without recomputation the backward pass needs all logits anyway.
        """
        kept = torch.is_grad_enabled() and self.config.trunk.checkpointing == "none"
        size = LOGITS_A_PART // (levels.shape[1] * self.config.num_levels)
        groups = len(levels) if kept else max(1, size)
        return zip(tokens.split(groups), levels.split(groups), strict=True)

    def _nats(self, tokens: DataTokens, levels: Levels) -> Float[Tensor, " g"]:
        logits = self.logits(tokens)
        exact = torch.promote_types(logits.dtype, torch.float32)
        losses = functional.cross_entropy(
            logits.to(exact).flatten(0, 1), levels.flatten(), reduction="none"
        )
        return losses.unflatten(0, levels.shape).sum(1)


def decode_images(decoder: Decoder, tokens: Int64[Tensor, "b t n"]) -> Float[Tensor, "b t n v"]:
    """The official entry: images of equally many patches, tokens already shifted -> logits."""
    num_images, num_groups = tokens.shape[:2]
    places = Places.in_one_row(num_images=num_images, num_groups=num_groups, device=tokens.device)
    normed = decoder(tokens.flatten(0, 1), places, decoder.layout(places))
    return decoder.logits(normed).unflatten(0, (num_images, num_groups))
