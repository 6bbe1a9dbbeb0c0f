"""What a training needs on each worker, part by part.

A step has its peak in the backward pass or when the optimizer moves the weights. With P parameters
and N workers, bytes a parameter (measured of DeepSpeed 0.19 on one and two workers, without its
fixed buffers):

    precision  ZeRO    weights    optimizer    gradients, backward    update, besides the first two
    fp32       0       4          8            4                      5.5
    fp32       1, 2    4          12 / N       4                      16 / N
    bf16       0       2          12           2                      7.5
    bf16       1       2          12 / N       2                      14 / N
    bf16       2       2          12 / N       2 + 4 / N              2 + 12 / N

A bounded run sums its gradients in float32, 4 bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from typing import Literal

import numpy as np

from fit_model.bounded.config import BoundedConfig
from fit_model.flops import num_parameters
from fit_model.memory import activations
from fit_model.model import ModelConfig
from fit_model.vix import VixConfig
from jobs.batches import AHEAD_BYTES
from jobs.engine import DTYPES

Place = Literal["device", "host", "disk"]
ZeroStage = Literal[0, 1, 2, 3]
PROGRAM_BYTES: dict[str, dict[Place, int]] = {
    "cpu": {"device": 700_000_000},
    "gpu": {"device": 600_000_000, "host": 2_500_000_000},
}
"""Of a worker that has done nothing yet: Python, PyTorch, DeepSpeed, Ray; on a GPU its context."""
BUCKET_NUMBERS = 500_000_000
"""DeepSpeed's buffer for gradients that are summed over workers, on a GPU from ZeRO 1 on."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to be trained, on what."""

    model: ModelConfig
    groups_per_image: int
    """Of the largest image."""
    pixel_dtype: str = "uint8"
    pixels_are: Literal["mapped", "read"] = "mapped"
    """Into memory, from local disks, or read from afar."""
    images_per_step: int = 1
    accumulation: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    averaged: bool = False
    """Whether an average of the weights is kept."""
    checkpoints: Literal["background", "foreground"] = "foreground"
    """In the background a copy of the state waits to be written."""
    device: Literal["cpu", "gpu"] = "cpu"

    @property
    def pixel_bytes(self) -> int:
        """Of the largest image."""
        source = self.model.input
        values = source.group_side_px**2 * source.bands
        return self.groups_per_image * values * np.dtype(self.pixel_dtype).itemsize

    @property
    def most_sharing(self) -> int:
        """Workers that a square image can be divided between."""
        sharing = {"autoregressive": isqrt(self.groups_per_image), "vix": 1}
        return sharing.get(self.model.face.kind, self.groups_per_image)

    @property
    def groups_at_once(self) -> int:
        """More groups of the trunk than one worker ever holds."""
        groups = self.images_per_step * self.groups_per_image
        if self.model.face.kind == "autoregressive":
            groups *= (self.model.input.group_side_px // self.model.face.patch_px) ** 2
        return groups

    @cached_property
    def num_parameters(self) -> int:
        """Of the model."""
        return num_parameters(self.model)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How it is run."""

    num_workers: int = 1
    zero_stage: ZeroStage = 2
    sharing: int = 1
    """Workers that share an image."""
    checkpointing: Literal["none", "layer"] = "none"
    bounded: BoundedConfig | None = None

    @property
    def way(self) -> str:
        """In words."""
        if self.bounded is None:
            return "whole, recomputed" if self.checkpointing == "layer" else "whole"
        groups = f"bounded, {self.bounded.groups_a_chunk:,} groups a chunk"
        offload = self.bounded.offload
        return groups if offload == "none" else f"{groups}, tokens wait on the {offload}"

    def settings(self, demand: "Demand") -> dict[str, str]:
        """As TrainConfig names them."""
        found: dict[str, str] = {}
        if not isinstance(demand.model.face, VixConfig):
            found["model.trunk.checkpointing"] = self.checkpointing
        if self.bounded is not None:
            found["bounded.groups_a_chunk"] = str(self.bounded.groups_a_chunk)
            found["bounded.offload"] = self.bounded.offload
        found["engine.zero_stage"] = str(self.zero_stage)
        found["engine.precision"] = demand.precision
        found["workers.num_workers"] = str(self.num_workers)
        if self.sharing > 1:
            found["parallel.groups"] = str(self.sharing)
        return found


When = Literal["always", "backward", "update"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Bytes of one kind in one place."""

    name: str
    bytes: int
    place: Place = "device"
    when: When = "always"
    remedy: str = ""
    """What makes it smaller."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """All parts on one worker."""

    parts: Sequence[Part]
    apart_bytes: int
    """Of chunk and attention, what is not there at once."""
    device: Literal["cpu", "gpu"]

    def at_rest(self) -> int:
        """Of the device, between two steps."""
        found = [part for part in self.parts if part.when == "always" and part.place == "device"]
        host = [part for part in self.parts if part.place == "host" and self.device == "cpu"]
        return sum(part.bytes for part in [*found, *host])

    def total(self, place: Place) -> int:
        """The peak in a place; on a CPU the host's memory is the device's."""
        places = {"device", "host"} if self.device == "cpu" and place == "device" else {place}
        sums: dict[When, int] = {"always": 0, "backward": 0, "update": 0}
        for part in self.parts:
            sums[part.when] += part.bytes if part.place in places else 0
        apart = self.apart_bytes if place == "device" else 0
        return sums["always"] + max(sums["backward"] - apart, sums["update"])


def expected(demand: Demand, plan: Plan) -> Expected:
    """Where the memory of one worker goes."""
    images = images_at_once(demand, plan)
    needs = activations(
        with_checkpointing(demand.model, plan.checkpointing),
        [demand.groups_per_image] * images,
        dtype=DTYPES[demand.precision],
        bounded=plan.bounded,
        sharing=plan.sharing,
    )
    whole = plan.bounded is None
    place: Place = "device" if plan.bounded is None else WAITING[plan.bounded.offload]
    parts = [
        *program(demand),
        *state(demand, plan),
        Part(
            name="kept inputs",
            bytes=needs.waiting,
            place=place,
            when="backward",
            remedy="bounded.offload: disk",
        ),
        Part(
            name="layers in groups",
            bytes=needs.inside + needs.buffers,
            when="backward",
            remedy="fewer images_per_step, or more accumulation"
            if whole
            else "bounded.groups_a_chunk, or a smaller group_side_px when preprocessing",
        ),
        Part(name="latents", bytes=needs.latents, when="backward", remedy=FEWER_LATENTS),
        Part(name="global layers", bytes=needs.meetings, when="backward", remedy=FEWER_LATENTS),
        *pixels(demand, plan),
    ]
    return Expected(
        parts=[part for part in parts if part.bytes],
        apart_bytes=needs.inside + needs.meetings - needs.inside_and_meetings,
        device=demand.device,
    )


WAITING: dict[str, Place] = {"none": "device", "host": "host", "disk": "disk"}
FEWER_LATENTS = "fewer model.trunk.latents_per_group, or a larger group_side_px when preprocessing"
SMALLER = "more workers.num_workers, or a smaller model.trunk.width"


def pixels(demand: Demand, plan: Plan) -> list[Part]:
    """Of a micro-batch whole as a tensor, in chunks not worth mentioning; and what is read."""
    size = -(-images_at_once(demand, plan) * demand.pixel_bytes // plan.sharing)
    remedy = "fewer images_per_step, or more accumulation"
    tensor = Part(name="pixels", bytes=0 if plan.bounded else size, remedy=remedy)
    if demand.pixels_are == "mapped":
        return [tensor]
    ahead = max(size, AHEAD_BYTES)
    return [tensor, Part(name="pixels read", bytes=size + ahead, place="host", remedy=remedy)]


def program(demand: Demand) -> list[Part]:
    """What is there before any training."""
    fixed = PROGRAM_BYTES[demand.device]
    return [Part(name="program", bytes=each, place=place) for place, each in fixed.items()]


PerParameter = tuple[float, float]
"""Bytes on every worker, and bytes that ZeRO spreads."""
GRADIENTS: dict[tuple[str, int], tuple[PerParameter, PerParameter]] = {
    ("fp32", 0): ((4.0, 0.0), (5.5, 0.0)),
    ("fp32", 1): ((4.0, 0.0), (0.0, 16.0)),
    ("fp32", 2): ((4.0, 0.0), (0.0, 16.0)),
    ("bf16", 0): ((2.0, 0.0), (7.5, 0.0)),
    ("bf16", 1): ((2.0, 0.0), (0.0, 14.0)),
    ("bf16", 2): ((2.0, 4.0), (2.0, 12.0)),
}
"""In the backward pass, and when weights move; by precision and ZeRO stage."""


def state(demand: Demand, plan: Plan) -> list[Part]:
    """Weights, optimizer and gradients."""
    count, stage, item = demand.num_parameters, plan.zero_stage, DTYPES[demand.precision].itemsize
    spread = 1.0 / plan.num_workers if stage > 0 else 1.0
    masters = 4.0 if stage > 0 or item < 4 else 0.0
    averages = 4.0 if demand.averaged else 0.0
    gradients, update = GRADIENTS[demand.precision, min(stage, 2)]
    if plan.bounded is not None:
        gradients = (4.0, 0.0)
    weights = item * (spread if stage == 3 else 1.0)
    buffers = item * BUCKET_NUMBERS if demand.device == "gpu" and stage > 0 else 0
    copied = 12.0 + averages if demand.checkpoints == "background" else 0.0
    return [
        Part(name="weights", bytes=round(count * weights), remedy=SMALLER),
        Part(
            name="optimizer",
            bytes=round(count * spread * (8.0 + masters + averages)),
            remedy="engine.zero_stage: 2 with " + SMALLER,
        ),
        Part(
            name="gradients",
            bytes=round(count * (gradients[0] + gradients[1] * spread)),
            when="backward",
            remedy=SMALLER,
        ),
        Part(
            name="update",
            bytes=round(count * (update[0] + update[1] * spread)),
            when="update",
            remedy=SMALLER,
        ),
        Part(name="buckets", bytes=buffers, remedy="engine.zero_stage: 0"),
        Part(
            name="checkpoint",
            bytes=round(count / plan.num_workers * copied),
            place="host",
            remedy="record.writing: foreground",
        ),
    ]


def images_at_once(demand: Demand, plan: Plan) -> int:
    """Of a micro-batch of the worker that has most."""
    sets = plan.num_workers // plan.sharing
    return -(-demand.images_per_step // (sets * demand.accumulation))


def with_checkpointing(model: ModelConfig, checkpointing: Literal["none", "layer"]) -> ModelConfig:
    """The same model, layers recomputed or not; a vision transformer knows no recomputation."""
    if isinstance(model.face, VixConfig):
        return model
    trunk = replace(model.face.trunk, checkpointing=checkpointing)
    return replace(model, face=replace(model.face, trunk=trunk))
