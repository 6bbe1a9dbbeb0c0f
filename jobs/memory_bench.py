"""Peak memory and time of one training step against the side of the image.

Run      farreach bench memory [key=value ...]
Writes   `output`/memory.png    both against the image's side, on logarithmic axes
         `output`/memory.txt    the tables that are printed
         `output`/memory.json   all of it, with the settings and the machine; written last
Takes    half an hour on 2 CPU cores
Needs    Linux on the CPU; `output` must not exist yet
Example  farreach bench memory sides='[800, 1600]' variants='[bounded, whole, vix]'

A step is forward, backward and AdamW at batch 1, in a process of its own. The same model runs in
bounded memory, its tokens on the device or on the disk, and whole, with and without recomputation;
beside it a vision transformer with fused attention on the same tokens, as wide, and as deep as all
layers of the trunk. What is predicted not to fit the limits is not run, and named.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from rich.progress import track

from fit_model import checks
from fit_model.bounded.config import BoundedConfig
from fit_model.encoder import EncoderConfig
from fit_model.flops import forward_macs, num_parameters, training_macs
from fit_model.heads import ClassifyConfig
from fit_model.memory import activations
from fit_model.model import ModelConfig
from fit_model.tokens import InputConfig
from fit_model.trunk_config import TrunkConfig
from fit_model.vix import VixConfig
from jobs.bench_results import publish
from jobs.engine import DTYPES
from jobs.errors import UserError
from jobs.fresh_process import in_fresh_process
from jobs.memory_picture import picture
from jobs.memory_report import Point, Report, as_json, show
from jobs.memory_steps import StepCost, StepTask, measure
from jobs.operator_costs import LeftOut
from jobs.settings import to_dict
from jobs.whole_folder import require_new
from pipeline.storage import Location

START_S = 120.0
"""More than a process and its weights need."""
REFERENCE = TrunkConfig(
    layers="(2)4(2)4(2)",
    width=768,
    latent_width=768,
    latents_per_group=4,
    heads=12,
    latent_heads=12,
)
"""Of the paper's point: 114 million parameters."""


@dataclass(frozen=True, kw_only=True)
class MemoryBench:
    """The model, the images, and how far to go."""

    output: str = "memory"
    sides: tuple[int, ...] = (1600, 3200, 6400)
    """Of images, in px."""
    variants: tuple[str, ...] = ("bounded, disk", "bounded", "whole", "whole, recomputed", "vix")
    patch_px: int = 16
    group_side_px: int = 160
    bands: int = 3
    trunk: TrunkConfig = field(default_factory=lambda: REFERENCE)
    latent_position: Literal["learned", "coordinate"] = "learned"
    """"learned" has parameters for every group of the image."""
    groups_a_chunk: int = 16
    precision: Literal["fp32", "bf16"] = "bf16"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 2
    limit_s: float = 600.0
    """A step that is predicted to take longer is left out."""
    limit_gb: float = 16.0
    """The same for memory; a step that needs more after all is stopped."""

    def __post_init__(self) -> None:
        for name, given in (("sides", self.sides), ("variants", self.variants)):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} is {list(given)}: give at least one, and each once")
        for variant in self.variants:
            checks.one_of(VARIANTS, variants=variant)
        checks.positive(
            patch_px=self.patch_px,
            group_side_px=self.group_side_px,
            bands=self.bands,
            groups_a_chunk=self.groups_a_chunk,
            threads=self.threads,
        )
        for side in self.sides:
            if side < 1 or side % self.group_side_px:
                raise ValueError(
                    f"sides has {side}, which is no multiple of group_side_px {self.group_side_px}"
                )
        for name in ("limit_s", "limit_gb"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name):g}: it must be more than 0")
        self.task(self.variants[0], self.sides[0])

    def in_words(self) -> str:
        """What all points have in common."""
        trunk = self.trunk
        return (
            f"{trunk.layers}, width {trunk.width}, groups of {self.group_side_px} px, patches of "
            f"{self.patch_px} px, batch 1, {self.precision}, {self.device}, {self.threads} threads"
        )

    def task(self, variant: str, side_px: int) -> StepTask:
        """One measurement."""
        groups_a_side = side_px // self.group_side_px
        face, bounded = VARIANTS[variant](self, groups_a_side)
        source = InputConfig(
            bands=self.bands,
            group_side_px=self.group_side_px,
            band_mean=(128.0,) * self.bands,
            band_std=(64.0,) * self.bands,
        )
        local_end = isinstance(face, EncoderConfig) and not face.trunk.blocks[-1].num_across
        head = ClassifyConfig(classes=("no", "yes"), pool="tokens" if local_end else "latents")
        return StepTask(
            model=ModelConfig(face=face, input=source, head=head),
            groups_a_side=groups_a_side,
            bounded=bounded,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
            limit_gb=self.limit_gb,
        )


Face = EncoderConfig | VixConfig
Made = tuple[Face, BoundedConfig | None]


def whole(
    config: MemoryBench, groups_a_side: int, *, checkpointing: Literal["none", "layer"]
) -> Made:
    """All groups at once."""
    learned = config.latent_position == "learned"
    face = EncoderConfig(
        patch_px=config.patch_px,
        trunk=replace(config.trunk, checkpointing=checkpointing),
        latent_position=config.latent_position,
        num_groups=groups_a_side**2 if learned else None,
    )
    return face, None


def in_chunks(config: MemoryBench, groups_a_side: int, *, offload: Literal["none", "disk"]) -> Made:
    """A few groups at a time."""
    face, _ = whole(config, groups_a_side, checkpointing="none")
    return face, BoundedConfig(groups_a_chunk=config.groups_a_chunk, offload=offload)


def vix(config: MemoryBench, groups_a_side: int) -> Made:
    """A plain transformer over the same tokens."""
    trunk = config.trunk
    depth = sum(block.num_local + block.num_across for block in trunk.blocks)
    face = VixConfig(
        patch_px=config.patch_px,
        width=trunk.width,
        depth=depth,
        heads=trunk.heads,
        mlp_ratio=trunk.mlp_ratio,
        position="sin_cos_2d",
        pooling="mean",
        grid_rows=groups_a_side,
        grid_columns=groups_a_side,
    )
    return face, None


VARIANTS: dict[str, Callable[[MemoryBench, int], Made]] = {
    "bounded, disk": partial(in_chunks, offload="disk"),
    "bounded": partial(in_chunks, offload="none"),
    "whole": partial(whole, checkpointing="none"),
    "whole, recomputed": partial(whole, checkpointing="layer"),
    "vix": vix,
}

Measure = Callable[[StepTask], StepCost | LeftOut]


def main(config: MemoryBench) -> None:
    """Measure, print the tables and write them."""
    place = Location.of(config.output)
    require_new(place, name="output")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but PyTorch sees no GPU here: set device=cpu")
    points = measured(config, lambda task: measured_apart(task, limit_s=config.limit_s))
    report = Report(points=points, setting=config.in_words())
    publish(
        place,
        "memory",
        show=partial(show, report),
        picture=picture(report),
        values=as_json(report, settings=to_dict(config)),
    )


def measured_apart(task: StepTask, *, limit_s: float) -> StepCost | LeftOut:
    """In a process of its own."""
    return in_fresh_process(measure, task, patience_s=START_S + 2 * limit_s)


def measured(config: MemoryBench, measure: Measure) -> list[Point]:
    """All sides, the smallest first, of all variants; left out is what is too long or too large."""
    found: list[Point] = []
    before: dict[str, Point] = {}
    pairs = [(side, variant) for side in sorted(config.sides) for variant in config.variants]
    for side_px, variant in track(pairs, description="steps", transient=True):
        task = config.task(variant, side_px)
        cost = out_of_reach(task, before.get(variant), config) or measure(task)
        point = point_of(task, variant, side_px, cost)
        before[variant] = point
        found.append(point)
    return found


def out_of_reach(task: StepTask, before: Point | None, config: MemoryBench) -> LeftOut | None:
    """Why a step is not run, by arithmetic and by the step before it; None where it may be."""
    if expected_bytes(task) > 1e9 * config.limit_gb:
        return LeftOut(why=f"> {config.limit_gb:g} GB")
    if before is None:
        return None
    if before.cost is None:
        return LeftOut(why=before.left_out or "")
    macs = training_macs(task.model, [task.groups_a_side**2])
    seconds = before.cost.seconds * macs / before.macs
    return LeftOut(why=f"> {config.limit_s:g} s") if seconds > config.limit_s else None


def expected_bytes(task: StepTask) -> int:
    """Weights, masters, moments, gradients and activations."""
    dtype = DTYPES[task.precision]
    needs = activations(task.model, [task.groups_a_side**2], dtype=dtype, bounded=task.bounded)
    held = needs.inside_and_meetings + needs.latents + needs.buffers
    if task.bounded is not None and task.bounded.offload == "none":
        held += needs.waiting
    return (16 + dtype.itemsize) * num_parameters(task.model) + held


def point_of(task: StepTask, variant: str, side_px: int, cost: StepCost | LeftOut) -> Point:
    """What was found, with what it had to compute."""
    groups = [task.groups_a_side**2]
    face = task.model.face
    again = task.bounded is not None or (
        isinstance(face, EncoderConfig) and face.trunk.checkpointing == "layer"
    )
    macs = training_macs(task.model, groups)
    return Point(
        variant=variant,
        side_px=side_px,
        tokens=groups[0] * task.model.num_tokens,
        macs=macs,
        macs_with_again=macs + again * forward_macs(task.model, groups),
        expected_bytes=expected_bytes(task),
        cost=cost if isinstance(cost, StepCost) else None,
        left_out=cost.why if isinstance(cost, LeftOut) else None,
    )
