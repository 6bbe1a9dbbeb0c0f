"""How a training keeps within the memory of its workers, decided before they start."""

from collections.abc import Sequence
from typing import Any

from fit_model.bounded.config import BoundedConfig
from fit_model.model import ModelConfig
from fit_model.vix import VixConfig
from jobs.choosing_plans import GB, Limits, bounded, in_chunks, shortage, whole
from jobs.errors import UserError
from jobs.planning import Demand, Plan, expected
from pipeline.records import ImageRecord
from pipeline.storage import Location

WAYS = (whole, in_chunks("none"), in_chunks("host"), in_chunks("disk"))


def bounded_of(
    config: Any, model: ModelConfig, records: Sequence[ImageRecord]
) -> BoundedConfig | None:
    """Of a TrainConfig: as configured, or as its memory limit wants it."""
    if config.memory_limit_gb is None:
        return config.bounded
    demand = demand_of(config, model, records)
    return bounded_within(demand, plan_of(config), limit_gb=config.memory_limit_gb)


def plan_of(config: Any) -> Plan:
    """How a TrainConfig wants its workers to train."""
    trunk = getattr(config.model, "trunk", None)
    return Plan(
        # with the fewest, each holds the most
        num_workers=config.workers.min_workers,
        zero_stage=config.engine.zero_stage,
        sharing=config.parallel.groups,
        checkpointing="none" if trunk is None else trunk.checkpointing,
        bounded=config.bounded,
    )


def first_chunks(
    config: Any, model: ModelConfig, records: Sequence[ImageRecord]
) -> BoundedConfig | None:
    """Of a TrainConfig whose steps do not fit: chunks that are expected to take half as much.

    Where none are expected to, one group at once; None for a model that cannot go in chunks.
    """
    plan, demand = plan_of(config), demand_of(config, model, records)
    if not is_boundable(plan, demand):
        return None
    limits = Limits(device_bytes=expected(demand, plan).total("device") / 2)

    def fits(plan: Plan) -> bool:
        return limits.exceeded(expected(demand, plan)) is None

    found = in_chunks("none")(plan, demand, fits) or bounded(plan, 1, "none")
    return found.bounded


def is_boundable(plan: Plan, demand: Demand) -> bool:
    """Whether groups can go through the model a chunk at a time."""
    return plan.zero_stage < 3 and not isinstance(demand.model.face, VixConfig)


def demand_of(config: Any, model: ModelConfig, records: Sequence[ImageRecord]) -> Demand:
    """A micro-batch of the largest images."""
    largest = max(records, key=lambda record: len(record.groups))
    return Demand(
        model=model,
        groups_per_image=config.augment.most_groups(len(largest.groups)),
        pixel_dtype=largest.dtype,
        pixels_are="mapped" if Location.of(config.dataset).is_local else "read",
        images_per_step=config.batch.images_per_step,
        accumulation=config.batch.accumulation,
        precision=config.engine.precision,
        averaged=config.optimizer.ema_decay is not None,
        device=config.workers.device,
    )


def bounded_within(demand: Demand, plan: Plan, *, limit_gb: float) -> BoundedConfig | None:
    """How groups go through the model so that a step fits; None for all at once.

    What the plan says of chunks is held to; without it the cheapest way that fits is taken. Refuses
    what does not fit in any way, and names the setting to change.
    """
    limits = Limits(device_bytes=GB * limit_gb)

    def fits(plan: Plan) -> bool:
        return limits.exceeded(expected(demand, plan)) is None

    decided = plan.bounded is not None or not is_boundable(plan, demand)
    for way in (whole,) if decided else WAYS:
        found = way(plan, demand, fits)
        if found is not None:
            return found.bounded
    least = plan if decided else bounded(plan, 1, "disk")
    needed = shortage(expected(demand, least), limits)
    raise UserError(f"memory_limit_gb {limit_gb:g} is not enough: {needed}")
