"""Where the memory of a training step goes, besides weights and optimizer: closed forms.

With B stretches, L data tokens of width d and M latents of width e of all images of a micro-batch,
T data tokens of a chunk, and `kept_numbers` for what layers keep:

    run           kept inputs    inside groups            meetings             most at once
    whole         -              all layers of L          all layers of M      inside + meetings
    recomputed    -              inputs of L, one layer   inputs, one layer    inside + meetings
    bounded       (B - 1) L d    one stretch of T         one meeting          the larger one

and bounded (2B + 5) M e of latents found and left, and their gradients. All times the bytes of a
number. What one operation of a kernel needs, and what an allocator cannot use, is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from fit_model.autoregressive import LOGITS_A_PART, AutoregressiveConfig
from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.disk import WRITES_AHEAD
from fit_model.denoiser import DiffusionConfig
from fit_model.encoder import EncoderConfig
from fit_model.heads import PredictConfig
from fit_model.kept_numbers import (
    LayerNumbers,
    kept_in_parts,
    kept_plainly,
    kept_recomputed,
    meeting,
    mixing,
    self_layer,
    stretch,
)
from fit_model.model import ModelConfig
from fit_model.reach import Reach
from fit_model.vix import VixConfig

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that the passes over one micro-batch need, by part and by where they are."""

    inside: int
    """What layers inside groups keep: of all groups, or of a chunk, whose tokens come and go."""
    meetings: int
    """What global layers keep, their queries, keys and values among it: of all, or of one."""
    inside_and_meetings: int
    """The most of both that is there at once."""
    latents: int = 0
    """Kept between the passes of a bounded run."""
    waiting: int = 0
    """Data tokens between stretches of a bounded run, where its `offload` says."""
    buffers: int = 0
    """Chunks on their way there and back."""


def activations(
    config: ModelConfig,
    groups_per_image: Sequence[int],
    *,
    dtype: torch.dtype,
    bounded: BoundedConfig | None = None,
    sharing: int = 1,
) -> Activations:
    """Of a training step on images with that many stored groups each, on one worker.

    Args:
        config: the model; its trunk's checkpointing counts.
        groups_per_image: of one micro-batch.
        dtype: what is computed in.
        bounded: None for all groups at once.
        sharing: workers that hold the groups of these images between them.
    """
    if isinstance(config.face, VixConfig):
        return _of_vix(config, config.face, len(groups_per_image), dtype=dtype)
    course = _Course(config, groups_per_image, dtype=dtype, sharing=sharing)
    return course.whole() if bounded is None else course.bounded(bounded)


class _Course:
    """The parts of a pass of a model with a trunk, in bytes."""

    def __init__(
        self,
        config: ModelConfig,
        groups_per_image: Sequence[int],
        *,
        dtype: torch.dtype,
        sharing: int,
    ) -> None:
        face = cast(EncoderConfig | DiffusionConfig | AutoregressiveConfig, config.face)
        self.config, self.face, self.trunk, self.dtype = config, face, face.trunk, dtype
        patches = (config.input.group_side_px // face.patch_px) ** 2
        self.channels, self.groups_per_image = config.patch_channels, list(groups_per_image)
        self.tokens_a_group, self.grid_tokens = patches, patches
        if isinstance(face, AutoregressiveConfig):
            # of the trunk a group is a patch, and a token one of its values
            self.tokens_a_group = self.grid_tokens = config.patch_channels
            self.groups_per_image = [count * patches for count in groups_per_image]
        elif isinstance(face, EncoderConfig) and face.group_token != "none":
            self.tokens_a_group += 1
        self.largest = max(self.groups_per_image)
        self.groups = sum(-(-count // sharing) for count in self.groups_per_image)
        self.share = -(-self.largest // sharing)
        self.latents = self.groups * self.trunk.latents_per_group
        self.reach: Reach = face.reach(self.grid_tokens)
        recomputes = self.trunk.checkpointing == "layer"
        self.keep_inside = kept_in_parts if recomputes else kept_plainly
        self.keep_met = kept_recomputed if recomputes else kept_plainly

    def whole(self) -> Activations:
        """Autograd keeps what all stretches and meetings need."""
        item, numbers = self.dtype.itemsize, range(len(self.trunk.blocks))
        stretches = [each for number in numbers for each in self._stretch(number, self.groups)]
        met = [each for number in numbers for each in self._meeting(number)]
        inside, meetings = item * self.keep_inside(stretches), item * self.keep_met(met)
        together = max(inside + meetings, self._entering(self.groups))
        return Activations(inside=inside, meetings=meetings, inside_and_meetings=together)

    def bounded(self, config: BoundedConfig) -> Activations:
        """A chunk inside a stretch, or a meeting."""
        item, trunk, numbers = self.dtype.itemsize, self.trunk, range(len(self.trunk.blocks))
        chunk = min(config.groups_a_chunk, self.groups)
        tokens = item * chunk * self.tokens_a_group * trunk.width
        inside = [item * self.keep_inside(self._stretch(number, chunk)) for number in numbers]
        # the tokens that leave, the gradient that comes, and the one that goes
        most = max(*(each + 3 * tokens for each in inside), self._entering(chunk))
        meetings = max(item * kept_recomputed(self._meeting(number)) for number in numbers)
        between = 2 * len(trunk.blocks) + 5 + (self.reach.flow == "causal")
        waiting = len(trunk.blocks) - 1
        return Activations(
            inside=most,
            meetings=meetings,
            inside_and_meetings=max(most, meetings),
            latents=item * between * self.latents * trunk.latent_width,
            waiting=item * waiting * self.groups * self.tokens_a_group * trunk.width,
            buffers=BUFFERS[config.offload] * tokens if waiting else 0,
        )

    def _stretch(self, number: int, groups: int) -> list[LayerNumbers]:
        found = stretch(
            self.trunk,
            number,
            groups=groups,
            tokens_a_group=self.tokens_a_group,
            reach=self.reach,
            dtype=self.dtype,
        )
        if number == 0:
            rows = groups * self.tokens_a_group
            patches = rows * self.channels
            if isinstance(self.face, AutoregressiveConfig):
                patches = rows * 8 // self.dtype.itemsize
            # the stem keeps its patches and what its norm is given
            entered = patches + rows * self.trunk.width
            found.insert(0, LayerNumbers(inputs=entered, inside=0, at_once=0, rows=rows))
        if number == len(self.trunk.blocks) - 1:
            ends = self._ends(groups) // self.dtype.itemsize
            found.append(LayerNumbers(inputs=0, inside=ends, at_once=0, rows=0))
        return found

    def _meeting(self, number: int) -> list[LayerNumbers]:
        return meeting(
            self.trunk,
            self.trunk.blocks[number],
            latents=self.share * self.trunk.latents_per_group,
            of=self.largest * self.trunk.latents_per_group,
            images=len(self.groups_per_image),
            reach=self.reach,
            dtype=self.dtype,
        )

    def _entering(self, groups: int) -> int:
        """Pixels as numbers, and as numbers normalised."""
        if isinstance(self.face, AutoregressiveConfig):
            return 0
        return 3 * FLOAT32 * groups * self.grid_tokens * self.channels

    def _ends(self, groups: int) -> int:
        """From the last stretch to what groups add to their images."""
        item, rows = self.dtype.itemsize, groups * self.tokens_a_group
        normed = item * rows * self.trunk.width
        if isinstance(self.face, AutoregressiveConfig):
            logits = rows * self.face.num_levels
            if self.trunk.checkpointing == "layer":
                logits = min(logits, LOGITS_A_PART)
            return normed + logits * (item + 2 * FLOAT32)
        if isinstance(self.face, DiffusionConfig):
            # picture, noise, both together, estimate, error, its square
            return normed + rows * self.channels * (item + 6 * FLOAT32)
        head = cast(PredictConfig, self.config.head)
        return 2 * normed if head.pool == "tokens" else 0


BUFFERS = {"none": 0, "host": 2, "disk": 2 + WRITES_AHEAD}
"""Chunks on the device, or behind a disk, that come and go."""


def _of_vix(
    config: ModelConfig, face: VixConfig, images: int, *, dtype: torch.dtype
) -> Activations:
    """A vision transformer keeps everything of every layer."""
    place = face.place(group_side_px=config.input.group_side_px)
    rows = place.length(operator="vix")
    layers = [
        self_layer(
            images * rows,
            face.width,
            ratio=face.mlp_ratio,
            mixing=images
            * mixing(operator, rows, face.width, heads=face.heads, place=place, dtype=dtype),
        )
        for operator in face.operators
    ]
    patches = images * rows * (config.patch_channels + 2 * face.width)
    inside = dtype.itemsize * (kept_plainly(layers) + patches)
    return Activations(inside=inside, meetings=0, inside_and_meetings=inside)
