"""What a bench leaves: tables on the screen, and a folder with tables, a picture and JSON."""

from collections.abc import Callable

from matplotlib.figure import Figure
from rich.console import Console

from jobs.consoles import WIDE, wide_console
from jobs.whole_folder import drafted
from pipeline.storage import Location


def publish(
    place: Location,
    name: str,
    *,
    show: Callable[[Console], None],
    picture: Figure,
    values: str,
) -> None:
    """Print the tables, then write NAME.txt, NAME.png and, last, NAME.json; whole or not at all.

    Args:
        place: the folder, which is not there yet.
        name: of the bench.
        show: prints the tables.
        picture: for people who would rather look than read.
        values: every figure, as JSON.
    """
    console = wide_console()
    show(console)
    with drafted(place, last=f"{name}.json") as draft:
        picture.savefig(draft / f"{name}.png", dpi=120)
        with (draft / f"{name}.txt").open("w", encoding="utf-8") as file:
            show(Console(file=file, width=WIDE, highlight=False))
        (draft / f"{name}.json").write_text(values, encoding="utf-8")
    console.print(f"wrote {place}: {name}.png to look at, {name}.txt, {name}.json")
