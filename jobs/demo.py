"""The whole road on a small dataset: scenes, patch groups, training, evaluation, registry.

Run      farreach demo [key=value ...]        (or: make demo)
Writes   `folder`: scenes, dataset, checkpoints, mlflow.db, and the settings of every job
Needs    2 CPU cores, 2 GB of memory, 1 GB of disk
Takes    166 s on 2 cores, once installed
Again    starts afresh in the same folder; a folder that no demo made is refused

Example  farreach demo folder=first-look total_steps=100
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet
from rich.console import Console
from rich.table import Table

from jobs import registry
from jobs.errors import MachineFault, UserError
from jobs.scenes import PerfectReaders, SceneConfig, perfect_readers, write_scenes

MARK = ".farreach-demo"
MODEL = "scenes"
CHAMPION = f"{MODEL}@champion"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Where and how large."""

    folder: str = "farreach-demo"
    total_steps: int = 300
    scenes: SceneConfig = field(default_factory=SceneConfig)


def main(config: DemoConfig) -> None:
    """Make the scenes, run the four commands a user would type, and say what came of them."""
    console = Console(soft_wrap=True, highlight=False)
    folder = fresh_folder(Path(config.folder))
    # the demo's own store and its own Ray, whatever else this shell is set up for
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder.absolute()}/mlflow.db"
    os.environ.pop("RAY_ADDRESS", None)
    started_s = time.monotonic()
    scenes = config.scenes
    console.print(
        f"making {scenes.training_scenes} training and {scenes.heldout_scenes} held-out scenes: "
        f"photographs strewn with {scenes.digits} handwritten digits"
    )
    write_scenes(scenes, folder / "scenes")
    for command in commands(config):
        run(command, folder, console)
    readers = perfect_readers(heldout_contents(folder / "scenes"))
    champion = registry.show(CHAMPION)
    scores_table(champion, readers, scenes, console)
    tell(champion, folder, time.monotonic() - started_s, console)


def fresh_folder(folder: Path) -> Path:
    """An empty folder with the jobs' settings in it; an earlier demo's content goes."""
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and no demo made it: choose another with folder=NAME")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    for job in ("preprocess", "train", "evaluate"):
        settings = files("jobs").joinpath("configs", job, "demo.yaml").read_text("utf-8")
        (folder / f"{job}.yaml").write_text(settings, encoding="utf-8")
    return folder


def commands(config: DemoConfig) -> list[list[str]]:
    """What a user would type in the demo's folder."""
    return [
        ["preprocess", "preprocess.yaml"],
        ["train", "train.yaml", f"total_steps={config.total_steps}"],
        ["evaluate", "evaluate.yaml"],
        ["models", "promote", f"{MODEL}@challenger", "champion"],
    ]


def run(command: list[str], folder: Path, console: Console) -> None:
    """One command in the demo's folder, its output shown; the demo ends where it fails."""
    console.print(f"\n[bold]$ farreach {' '.join(command)}[/bold]")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "jobs.cli", *command], cwd=folder, check=False
    )
    if done.returncode:
        raise MachineFault(f"`farreach {' '.join(command)}` ended with {done.returncode}")


def heldout_contents(scenes: Path) -> pyarrow.Table:
    """Every digit of the held-out scenes."""
    contents = pyarrow.parquet.read_table(scenes / "contents.parquet")
    return contents.filter(pc.equal(contents["split"], "test"))


def scores_table(
    model: registry.Registered, readers: PerfectReaders, scenes: SceneConfig, console: Console
) -> None:
    """The model beside readers who make no mistake but see only a part."""
    sides = [side for sides in scenes.sides_px for side in sides]
    sizes = f"{min(sides)} to {max(sides)} px a side"
    table = Table(title="\nWhich digit is in the majority? Share of held-out scenes answered right")
    table.add_column("who looks")
    table.add_column("at what")
    table.add_column("right", justify="right")
    table.add_row("nobody", "nothing", f"{0.5:.1%}")
    table.add_row("a perfect reader", "one group of 64 x 64 px", f"{readers.one_group:.1%}")
    table.add_row("a perfect reader", "one quarter of the scene", f"{readers.one_quarter:.1%}")
    accuracy = model.metrics["test/accuracy"]
    table.add_row(f"FIT, {CHAMPION}", f"whole scenes, {sizes}", f"[bold]{accuracy:.1%}[/]")
    console.print(table)


def tell(model: registry.Registered, folder: Path, seconds: float, console: Console) -> None:
    """What was done, and the next three things to type."""
    console.print(
        f"In {seconds:.0f} s: scenes made, cut into patch groups, FIT trained on 2 Ray workers "
        f"with DeepSpeed ZeRO-2, evaluated, registered as {model.name} version {model.version}.\n"
        "Neither the handwriting nor the parts of the photographs in held-out scenes were seen "
        "in training."
    )
    place = shown(folder)
    activate = Path(sys.executable).with_name("activate")
    if shutil.which("farreach") is None and activate.exists():
        place = f". {shown(activate)} && cd {place}"
    else:
        place = f"cd {place}"
    console.print(
        f"\nNext, after  {place}\n"
        f"  farreach models show {CHAMPION}\n"
        f"  mlflow ui --backend-store-uri sqlite:///mlflow.db     and open http://127.0.0.1:5000\n"
        f"  farreach train train.yaml name=wider model.trunk.width=96"
    )


def shown(path: Path) -> str:
    """A path as short as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(DemoConfig, main, "demo")
