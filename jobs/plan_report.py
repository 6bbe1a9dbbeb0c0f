"""A plan as people read it: the way, the parts of its memory, its FLOPs, settings to paste."""

from rich.console import Console
from rich.table import Table

from fit_model.flops import forward_macs, training_macs
from jobs.choosing_plans import GB
from jobs.planning import Demand, Expected, Part, Plan, images_at_once, with_checkpointing
from jobs.trial import Trial

WHEN = {"always": "", "backward": "in the backward pass", "update": "when weights move"}


def show(
    demand: Demand,
    plan: Plan,
    found: Expected,
    console: Console,
    *,
    measured: Trial | None = None,
) -> None:
    """Everything that is known of a plan."""
    workers = f"{plan.num_workers} worker" + "s" * (plan.num_workers > 1)
    console.print(
        f"{plan.way}; {workers}, ZeRO {plan.zero_stage}, {plan.sharing} to an image, "
        f"{demand.num_parameters:,} parameters, {demand.groups_per_image:,} groups an image"
    )
    console.print(table(found))
    for place in ("device", "host", "disk"):
        total = found.total(place)
        if total and not (place == "host" and found.device == "cpu"):
            console.print(f"{place}: {total / GB:.3f} GB at the peak of a worker")
    console.print(flops(demand, plan))
    if measured is not None:
        compare(found, measured, console)
    console.print("settings for train:")
    console.print("  " + " ".join(f"{key}={value}" for key, value in plan.settings(demand).items()))


def table(found: Expected) -> Table:
    """A row a part."""
    drawn = Table(title="expected on one worker", title_justify="left")
    for name in ("part", "where", "GB", "when"):
        drawn.add_column(name, justify="right" if name == "GB" else "left")
    for part in found.parts:
        drawn.add_row(part.name, part.place, f"{part.bytes / GB:.3f}", _when(part, found))
    return drawn


def _when(part: Part, found: Expected) -> str:
    either = found.apart_bytes and part.name in ("layers in groups", "global layers")
    return WHEN[part.when] + (", one of two" if either else "")


def flops(demand: Demand, plan: Plan) -> str:
    """Of one step on all workers, by formula."""
    model = with_checkpointing(demand.model, plan.checkpointing)
    groups = [demand.groups_per_image] * demand.images_per_step
    learning = training_macs(model, groups)
    again = 0 if plan.way == "whole" else forward_macs(model, groups)
    return (
        f"a step of {demand.images_per_step} images: {2e-12 * learning:.3g} TFLOP, "
        f"{2e-12 * (learning + again):.3g} with what is computed again; "
        f"{images_at_once(demand, plan)} images at a time on a worker"
    )


def compare(found: Expected, measured: Trial, console: Console) -> None:
    """Expected beside measured."""
    rows: list[tuple[str, float, float]] = [
        ("after start", found.at_rest() / GB, measured.rest_bytes / GB),
        ("at the peak", found.total("device") / GB, measured.peak_bytes / GB),
    ]
    drawn = Table(title="device memory of the first worker, GB", title_justify="left")
    for name in ("", "expected", "measured"):
        drawn.add_column(name, justify="right" if name else "left")
    for name, wanted, got in rows:
        drawn.add_row(name, f"{wanted:.3f}", f"{got:.3f}")
    console.print(drawn)
    steps = ", ".join(f"{each:.3g}" for each in measured.step_s)
    console.print(f"seconds a step: {steps}")
