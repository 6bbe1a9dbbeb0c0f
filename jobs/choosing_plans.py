"""The cheapest way to run a training that fits the memory of its workers.

    way                      forward passes    what is there at once
    whole                    3                 all that autograd keeps
    whole, recomputed        4                 the inputs of all layers, and one layer
    bounded                  4                 a chunk of groups; tokens wait on the device
    bounded, host, disk      4                 the same; tokens wait there

A forward pass counts for itself, a backward pass for two. Of chunks the largest that fits is taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fit_model.bounded.config import BoundedConfig, Offload
from fit_model.vix import VixConfig
from jobs.errors import UserError
from jobs.planning import Demand, Expected, Part, Place, Plan, ZeroStage, expected

MOST_WORKERS = 1024
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a worker may use, in bytes."""

    device_bytes: float
    host_bytes: float | None = None
    """Of a GPU worker; None for no limit. A CPU worker has one memory."""
    disk_bytes: float | None = None

    def exceeded(self, found: Expected) -> Place | None:
        """The first place that does not hold what is expected there."""
        limits: dict[Place, float | None] = {
            "device": self.device_bytes,
            "host": None if found.device == "cpu" else self.host_bytes,
            "disk": self.disk_bytes,
        }
        for place, limit in limits.items():
            if limit is not None and found.total(place) > limit:
                return place
        return None


Fits = Callable[[Plan], bool]


def cheapest(demand: Demand, limits: Limits, *, num_workers: int) -> Plan:
    """The plan of a training that nobody has decided anything about but its workers."""

    def fits(plan: Plan) -> bool:
        return limits.exceeded(expected(demand, plan)) is None

    plans = splits(demand, num_workers=num_workers)
    if not plans:
        raise UserError(
            f"workers.num_workers {num_workers} leaves some workers without a part of a step: "
            f"images_per_step {demand.images_per_step}, accumulation {demand.accumulation}, and an "
            f"image can be divided between {demand.most_sharing}; take fewer workers, or more "
            "images_per_step"
        )
    plan = first(plans, demand, fits)
    if plan is None:
        raise UserError(refusal(demand, limits, num_workers=num_workers, fits=fits))
    return plan


def first(plans: list[Plan], demand: Demand, fits: Fits) -> Plan | None:
    """The first of all ways to run any of the plans that fits; whole for all before bounded."""
    for way in WAYS:
        for plan in plans:
            found = way(plan, demand, fits)
            if found is not None:
                return found
    return None


def splits(demand: Demand, *, num_workers: int) -> list[Plan]:
    """How workers can share images and state: as little as possible first."""
    shared = [
        count
        for count in range(1, num_workers + 1)
        if num_workers % count == 0
        and num_workers // count * demand.accumulation <= demand.images_per_step
        and count <= demand.most_sharing
    ]
    stages: tuple[ZeroStage, ...] = (0,) if num_workers == 1 else (1, 2)
    return [
        Plan(num_workers=num_workers, zero_stage=stage, sharing=sharing)
        for stage in stages
        for sharing in shared
    ]


def whole(plan: Plan, demand: Demand, fits: Fits) -> Plan | None:
    """All groups at once."""
    return plan if fits(plan) else None


def recomputed(plan: Plan, demand: Demand, fits: Fits) -> Plan | None:
    """All groups at once, layers computed again."""
    if isinstance(demand.model.face, VixConfig):
        return None
    again = replace(plan, checkpointing="layer")
    return again if fits(again) else None


def in_chunks(offload: Offload) -> Callable[[Plan, Demand, Fits], Plan | None]:
    """Groups so many at a time as fit, while their tokens wait somewhere."""

    def chunked(plan: Plan, demand: Demand, fits: Fits) -> Plan | None:
        if isinstance(demand.model.face, VixConfig):
            return None
        # on a CPU the host's memory is the device's
        if offload == "host" and demand.device == "cpu":
            return None
        largest = most(
            lambda groups: fits(bounded(plan, groups, offload)), up_to=demand.groups_at_once
        )
        return bounded(plan, largest, offload) if largest else None

    return chunked


WAYS = (whole, recomputed, in_chunks("none"), in_chunks("host"), in_chunks("disk"))


def bounded(plan: Plan, groups: int, offload: Offload) -> Plan:
    """The plan with so many groups at a time."""
    config = BoundedConfig(groups_a_chunk=groups, offload=offload)
    return replace(plan, bounded=config)


def most(fits: Callable[[int], bool], *, up_to: int) -> int:
    """The largest number that fits, 0 if none does; what fits, fits with less."""
    low, high = 0, up_to if fits(1) else 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def refusal(demand: Demand, limits: Limits, *, num_workers: int, fits: Fits) -> str:
    """One line: what is missing most, and what helps."""
    least = smallest(demand, num_workers=num_workers)
    return f"{shortage(expected(demand, least), limits)}{enough(demand, fits, num_workers)}"


def smallest(demand: Demand, *, num_workers: int) -> Plan:
    """What needs least of the device."""
    plan = splits(demand, num_workers=num_workers)[-1]
    if isinstance(demand.model.face, VixConfig):
        return plan
    return bounded(plan, 1, "disk")


def shortage(found: Expected, limits: Limits) -> str:
    """What does not fit, its largest part, and the setting that makes it smaller."""
    place = limits.exceeded(found) or "device"
    limit = {"device": limits.device_bytes, "host": limits.host_bytes, "disk": limits.disk_bytes}
    needed = (
        f"{(limit[place] or 0) / GB:.3g} GB of {place} memory are too few: a step needs at least "
        f"{found.total(place) / GB:.3g} GB"
    )
    fixed = sum(part.bytes for part in parts_in(found, place) if not part.remedy)
    if fixed >= (limit[place] or 0):
        return f"{needed}, {fixed / GB:.3g} GB of it the program alone; take a higher limit"
    largest = biggest(found, place)
    return (
        f"{needed}, beside the program most of it {largest.name} "
        f"({largest.bytes / GB:.3g} GB); take {largest.remedy}"
    )


def biggest(found: Expected, place: Place) -> Part:
    """The largest part in a place that can be made smaller."""
    return max(
        (part for part in parts_in(found, place) if part.remedy), key=lambda part: part.bytes
    )


def parts_in(found: Expected, place: Place) -> list[Part]:
    """What lies in a place; on a CPU the host's memory is the device's."""
    places = {"device", "host"} if found.device == "cpu" and place == "device" else {place}
    return [part for part in found.parts if part.place in places]


def enough(demand: Demand, fits: Fits, num_workers: int) -> str:
    """The number of workers that would do, if there is one."""
    for count in counts(2 * num_workers):
        plans = splits(demand, num_workers=count)
        if first(plans, demand, fits) is not None:
            return f"; workers.num_workers={count} would do"
    return ""


def counts(start: int) -> Iterator[int]:
    """Twice as many each time."""
    while start <= MOST_WORKERS:
        yield start
        start *= 2
