"""Time of one training step against the number of workers that share the image.

Run      farreach bench scaling [key=value ...]
Writes   `output`/scaling.png    steps and their parts against workers
         `output`/scaling.txt    the table that is printed
         `output`/scaling.json   all of it, with the settings and the machine; written last
Takes    some minutes on 2 CPU cores
Needs    a CPU core a worker; `output` must not exist yet
Example  farreach bench scaling workers='[1, 2, 4]' side_px=3200

All workers hold their groups of one image, in bounded memory. A step is both passes and the sum of
the gradients over the workers. Meetings, in which the latents of all groups see each other, are
timed once more alone; what is left is outside them, and ideally takes 1 / workers of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from rich.progress import track

from fit_model import checks
from fit_model.bounded.config import BoundedConfig
from fit_model.encoder import EncoderConfig
from fit_model.heads import ClassifyConfig
from fit_model.model import ModelConfig
from fit_model.tokens import InputConfig
from fit_model.trunk_config import TrunkConfig
from jobs.bench_results import publish
from jobs.scaling_report import Report, as_json, picture, show
from jobs.scaling_steps import ScalingTask, Spent, spent
from jobs.settings import to_dict
from jobs.small_world import in_small_world
from jobs.whole_folder import require_new
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class ScalingBench:
    """The model, the image, and how many workers."""

    output: str = "scaling"
    workers: tuple[int, ...] = (1, 2)
    side_px: int = 1600
    patch_px: int = 16
    group_side_px: int = 160
    bands: int = 3
    trunk: TrunkConfig = field(
        default_factory=lambda: TrunkConfig(
            layers="(2)4(2)4(2)",
            width=384,
            latent_width=384,
            latents_per_group=4,
            heads=6,
            latent_heads=6,
        )
    )
    groups_a_chunk: int = 10
    precision: Literal["fp32", "bf16"] = "fp32"
    rounds: int = 3
    """The fastest of so many steps counts."""

    def __post_init__(self) -> None:
        if not self.workers or len(set(self.workers)) < len(self.workers):
            raise ValueError(f"workers is {list(self.workers)}: give at least one, and each once")
        for count in self.workers:
            checks.positive(workers=count)
        checks.positive(bands=self.bands, groups_a_chunk=self.groups_a_chunk, rounds=self.rounds)
        if self.side_px < 1 or self.side_px % self.group_side_px:
            raise ValueError(
                f"side_px is {self.side_px}, no multiple of group_side_px {self.group_side_px}"
            )
        groups = (self.side_px // self.group_side_px) ** 2
        if max(self.workers) > groups:
            raise ValueError(
                f"workers has {max(self.workers)}, more group workers than the image has groups, "
                f"{groups}: take fewer, or a larger side_px"
            )
        self.task()

    def in_words(self) -> str:
        """What all points have in common."""
        return (
            f"{self.trunk.layers}, width {self.trunk.width}, {self.side_px:,} px, groups of "
            f"{self.group_side_px} px, {self.precision}, one thread a worker"
        )

    def task(self) -> ScalingTask:
        """The same for any number of workers."""
        source = InputConfig(
            bands=self.bands,
            group_side_px=self.group_side_px,
            band_mean=(128.0,) * self.bands,
            band_std=(64.0,) * self.bands,
        )
        pool: Literal["latents", "tokens"] = (
            "latents" if self.trunk.blocks[-1].num_across else "tokens"
        )
        return ScalingTask(
            model=ModelConfig(
                face=EncoderConfig(patch_px=self.patch_px, trunk=self.trunk),
                input=source,
                head=ClassifyConfig(classes=("no", "yes"), pool=pool),
            ),
            groups_a_side=self.side_px // self.group_side_px,
            bounded=BoundedConfig(groups_a_chunk=self.groups_a_chunk),
            precision=self.precision,
            rounds=self.rounds,
        )


Measure = Callable[[ScalingTask, int], Spent]


def main(config: ScalingBench) -> None:
    """Measure, print the table and write it."""
    place = Location.of(config.output)
    require_new(place, name="output")
    report = measured(config, among)
    publish(
        place,
        "scaling",
        show=partial(show, report),
        picture=picture(report),
        values=as_json(report, settings=to_dict(config)),
    )


def among(task: ScalingTask, num_workers: int) -> Spent:
    """On so many workers of this machine, a thread each."""
    return in_small_world(spent, task, num_workers=num_workers, threads=1)


def measured(config: ScalingBench, measure: Measure) -> Report:
    """All numbers of workers, the smallest first."""
    counts = track(sorted(config.workers), description="workers", transient=True)
    found = {count: measure(config.task(), count) for count in counts}
    return Report(spent=found, setting=config.in_words())
