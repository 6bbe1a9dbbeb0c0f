"""Say beforehand whether a model trains on images of a size in the memory that there is, and how.

Run      farreach plan CONFIG.yaml [key=value ...] [--measure]
Prints   the cheapest way that fits, its memory by part, its FLOPs, and the settings for `train`
Needs    nothing; with --measure the memory and the workers that the plan speaks of
Example  farreach plan jobs/configs/plan/gigabit.yaml memory_limit_gb=4 workers.num_workers=2

--measure runs three real steps on random pixels and prints beside it what they needed.
"""

from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console

from fit_model import checks
from fit_model.autoregressive import AutoregressiveConfig
from fit_model.denoiser import DiffusionConfig
from fit_model.encoder import EncoderConfig
from fit_model.heads import ClassifyConfig
from fit_model.model import ModelConfig
from fit_model.pixels import PIXEL_DTYPES, GenerateConfig
from fit_model.tokens import InputConfig
from fit_model.vix import VixConfig
from jobs.choosing_plans import GB, Limits, cheapest
from jobs.plan_report import show
from jobs.planning import Demand, expected
from jobs.trial import Trial, require_machine, trial
from jobs.workers import WorkersConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What is to be trained, on what; names as in `train`, where `train` has them."""

    model: EncoderConfig | DiffusionConfig | AutoregressiveConfig | VixConfig
    image_side_px: int
    """Images are squares; none of their groups is left out."""
    group_side_px: int
    memory_limit_gb: float
    """Of the device of one worker; of a CPU worker its share of the host's memory."""
    host_limit_gb: float | None = None
    """Of one GPU worker."""
    disk_limit_gb: float | None = None
    bands: int = 3
    pixel_dtype: str = "uint8"
    images_per_step: int = 1
    accumulation: int = 1
    precision: Literal["fp32", "bf16"] = "bf16"
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    measure: bool = False
    """Also with --measure."""

    def __post_init__(self) -> None:
        checks.positive(
            image_side_px=self.image_side_px,
            group_side_px=self.group_side_px,
            bands=self.bands,
            images_per_step=self.images_per_step,
            accumulation=self.accumulation,
        )
        checks.one_of(PIXEL_DTYPES, pixel_dtype=self.pixel_dtype)
        for name in ("memory_limit_gb", "host_limit_gb", "disk_limit_gb"):
            given = getattr(self, name)
            if given is not None and not given > 0.0:
                raise ValueError(f"{name} is {given:g}: it must be more than 0")
        self.model_config()
        self._check_grid()

    def _check_grid(self) -> None:
        side, face = self.groups_a_side, self.model
        seen = f"images of {self.image_side_px} px have {side} x {side} groups"
        if isinstance(face, VixConfig):
            if (face.grid_rows, face.grid_columns) != (side, side):
                raise ValueError(
                    f"model.grid_rows {face.grid_rows} and model.grid_columns "
                    f"{face.grid_columns} do not fit: {seen}"
                )
            return
        count = side * side
        if isinstance(face, AutoregressiveConfig):
            count *= (self.group_side_px // face.patch_px) ** 2
        if face.num_groups not in (None, count):
            raise ValueError(
                f"model.num_groups {face.num_groups} does not fit: {seen}; set "
                f"model.num_groups={count}, or model.latent_position=coordinate and "
                "model.num_groups=null for images of any size"
            )

    @property
    def groups_a_side(self) -> int:
        """Of an image; the last ones may lie partly outside."""
        return -(-self.image_side_px // self.group_side_px)

    def model_config(self) -> ModelConfig:
        """The model on these pixels, for some task."""
        source = InputConfig(
            bands=self.bands,
            group_side_px=self.group_side_px,
            band_mean=(128.0,) * self.bands,
            band_std=(64.0,) * self.bands,
        )
        return ModelConfig(face=self.model, input=source, head=self._head())

    def _head(self) -> ClassifyConfig | GenerateConfig:
        if isinstance(self.model, EncoderConfig):
            ends_globally = self.model.trunk.blocks[-1].num_across > 0
            pool: Literal["latents", "tokens"] = "latents" if ends_globally else "tokens"
            return ClassifyConfig(classes=("no", "yes"), pool=pool)
        if isinstance(self.model, VixConfig):
            return ClassifyConfig(classes=("no", "yes"))
        return GenerateConfig(pixel_dtype=self.pixel_dtype, pixel_low=0.0, pixel_high=255.0)

    def demand(self) -> Demand:
        """As the planner takes it."""
        return Demand(
            model=self.model_config(),
            groups_per_image=self.groups_a_side**2,
            pixel_dtype=self.pixel_dtype,
            images_per_step=self.images_per_step,
            accumulation=self.accumulation,
            precision=self.precision,
            device=self.workers.device,
        )

    def limits(self) -> Limits:
        """In bytes."""
        return Limits(
            device_bytes=GB * self.memory_limit_gb,
            host_bytes=None if self.host_limit_gb is None else GB * self.host_limit_gb,
            disk_bytes=None if self.disk_limit_gb is None else GB * self.disk_limit_gb,
        )


def main(config: PlanConfig) -> None:
    """Choose, print, and if wanted measure."""
    demand = config.demand()
    plan = cheapest(demand, config.limits(), num_workers=config.workers.min_workers)
    measured: Trial | None = None
    console = Console(soft_wrap=True, markup=False, highlight=False)
    if config.measure:
        require_machine(demand, plan)
        console.print("measuring three steps")
        measured = trial(demand, plan, threads=config.workers.cpus_per_worker)
    show(demand, plan, expected(demand, plan), console, measured=measured)


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(PlanConfig, main, "plan")
