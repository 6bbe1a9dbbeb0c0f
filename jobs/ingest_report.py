"""What came of `farreach bench ingest`: tables, verdicts and JSON; `ingest_picture` draws it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.ingest_systems import CEILING, OURS, SYSTEMS
from jobs.operators_report import machine, rounded

TITLES = {
    "warm": "local files, in the page cache",
    "cold": "local files, not in the page cache",
    "s3": "an S3 endpoint on loopback",
}
BARS = {"warm": 0.9, "cold": 0.9, "s3": 0.8}
"""Of the ceiling's speed: what reading must reach."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A system in one place: its epochs, or why there are none."""

    system: str
    place: str
    megapixels: float
    """Of an epoch."""
    num_bytes: int = 0
    """Of its pixels."""
    seconds: tuple[float, ...] = ()
    """A round each."""
    left_out: str | None = None
    wrong: bool = False
    """Whether it is left out because other groups arrived."""

    @property
    def gb_per_s(self) -> float:
        """The median."""
        return self.num_bytes / median(self.seconds) / 1e9

    @property
    def range_gb_per_s(self) -> tuple[float, float]:
        """The slowest and the fastest round."""
        speeds = [self.num_bytes / each / 1e9 for each in self.seconds]
        return min(speeds), max(speeds)

    @property
    def megapixels_per_s(self) -> float:
        """The median."""
        return self.megapixels / median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Our speed as a multiple of another's: the median over rounds, each with its own two."""

    place: str
    system: str
    other: str
    ratio: float
    bar: float | None
    """What was asked for; None where nothing was."""

    def __str__(self) -> str:
        said = f"{self.place}: {self.system} at {self.ratio:.2f} of {self.other}"
        if self.bar is None:
            return said
        return f"{said} ({self.bar:.2f} asked for: {'yes' if self.ratio >= self.bar else 'NO'})"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All systems in all places."""

    points: list[Point]
    setting: str

    @property
    def places(self) -> list[str]:
        """Without repetition."""
        return list(dict.fromkeys(point.place for point in self.points))

    def of(self, place: str) -> dict[str, Point]:
        """What was asked for in a place, by system."""
        return {each.system: each for each in self.points if each.place == place}

    def ratio(self, place: str, system: str, other: str) -> float | None:
        """How many times as fast one was as the other; None where either was not measured."""
        points = self.of(place)
        if system not in points or other not in points:
            return None
        pairs = zip(points[other].seconds, points[system].seconds, strict=False)
        ratios = [slow / fast for slow, fast in pairs]
        return median(ratios) if ratios else None

    def verdicts(self) -> Iterator[Verdict]:
        """Us against the ceiling, against everybody else, and like against like."""
        for place in self.places:
            for system, other, bar in (
                (OURS, CEILING, BARS[place]),
                *((OURS, name, 1.0) for name, each in SYSTEMS.items() if each.copies),
                (OURS, f"{CEILING}, checksums", None),
                (f"{OURS}, no checksums", CEILING, None),
            ):
                ratio = self.ratio(place, system, other)
                if ratio is not None:
                    yield Verdict(place=place, system=system, other=other, ratio=ratio, bar=bar)


def table(report: Report, place: str) -> Table:
    """A row a system."""
    drawn = Table(title=f"{place}: {TITLES[place]}", title_justify="left")
    drawn.add_column("")
    for name in ("GB/s", "slowest and fastest", "megapixels/s", "of raw bytes"):
        drawn.add_column(name, justify="right")
    for system, point in report.of(place).items():
        if point.left_out is not None:
            drawn.add_row(system, "left out")
            continue
        ratio = report.ratio(place, system, CEILING)
        slowest, fastest = point.range_gb_per_s
        drawn.add_row(
            system,
            rounded(point.gb_per_s),
            f"{rounded(slowest)} to {rounded(fastest)}",
            rounded(point.megapixels_per_s),
            "" if ratio is None else f"{ratio:.2f}",
        )
    return drawn


def show(report: Report, console: Console) -> None:
    """All tables, and what they come to."""
    console.print(f"one epoch of patch groups: {report.setting}; medians")
    for place in report.places:
        console.print(table(report, place))
        for point in report.of(place).values():
            if point.left_out is not None:
                console.print(f"{point.system} is left out: {point.left_out}", markup=False)
    for verdict in report.verdicts():
        console.print(str(verdict))


def as_json(report: Report, *, settings: dict[str, Any]) -> str:
    """Every round, and what it was measured on."""
    points = [
        asdict(each) | ({} if each.left_out else {"gb_per_s": each.gb_per_s})
        for each in report.points
    ]
    whole = {
        "settings": settings,
        "machine": machine(),
        "verdicts": [asdict(each) for each in report.verdicts()],
        "points": points,
    }
    return json.dumps(whole, indent=1)
