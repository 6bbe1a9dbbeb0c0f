"""Look at a stored dataset: what is in it, how large its images are, and what they look like.

Run      farreach inspect DATASET [key=value ...]
Reads    the dataset's tables, local or s3://; with `output` also the groups of `images` images
Prints   images, groups, splits, labels, formats, sizes, background, quarantine by cause
Writes   with `output`: summary.json, sizes.png, and images.png, where groups that were left out as
         background are striped grey and those that could not be read are striped red
Needs    one core; memory for the images table, and for pictures some 20 MB

Example  farreach inspect dataset output=look
"""

from dataclasses import dataclass

from jobs.consoles import wide_console
from jobs.dataset_summary import Summary, summary_of
from jobs.pictures import sizes_picture
from jobs.summary_tables import say, write_json
from jobs.thumbnails import sheet_of
from jobs.whole_folder import drafted, require_new
from pipeline.dataset import open_dataset
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What to look at."""

    dataset: str
    """A folder or s3://bucket/prefix."""
    output: str | None = None
    """A new folder, or s3://bucket/prefix, for pictures and the figures as JSON."""
    images: int = 12
    """How many of the images are drawn: the first, the last, and some evenly between."""
    side_px: int = 320
    """The longer side of each of them at most."""
    split: str | None = None
    """Draw only images of this split."""

    def __post_init__(self) -> None:
        if self.images < 1 or self.side_px < 16:
            raise ValueError(
                f"images {self.images} must be at least 1 and side_px {self.side_px} at least 16"
            )


def main(config: InspectConfig) -> Summary:
    """Print what is in the dataset, and draw it where an output is given."""
    dataset = open_dataset(config.dataset)
    place = Location.of(config.output) if config.output else None
    if place:
        require_new(place, name="output")
    summary = summary_of(dataset)
    console = wide_console()
    say(summary, console)
    if place is None:
        console.print(f"pictures: farreach inspect {config.dataset} output=FOLDER", markup=False)
        return summary
    records = dataset.images(config.split)
    if not records:
        raise ValueError(f"{dataset.place}: no image in split {config.split!r}")
    with drafted(place, last="summary.json") as draft:
        sheet_of(dataset, records, most=config.images, side_px=config.side_px).savefig(
            draft / "images.png", dpi=100
        )
        sizes_picture(summary.long_sides_px, summary.size_counts).savefig(
            draft / "sizes.png", dpi=100
        )
        write_json(summary, draft / "summary.json")
    console.print(f"wrote {place}", markup=False)
    return summary


if __name__ == "__main__":
    from jobs.cli import run_entry

    run_entry(InspectConfig, main, "inspect")
