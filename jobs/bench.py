"""Measure what a promise of speed is worth on this machine.

Example  farreach bench decoding width=128
         farreach bench operators output=operators
         farreach bench digits output=digits
         farreach bench memory output=memory
         farreach bench scaling workers='[1, 2]'
         farreach bench preprocess output=preprocess
         farreach bench ingest output=ingest
         farreach bench train output=train
"""

from importlib import import_module
from typing import Annotated

import typer

from jobs.runner import exit_codes

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="Settings that replace the defaults."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


CONFIG_CLASSES = {
    "decoding": "DecodingBench",
    "operators": "OperatorsBench",
    "digits": "DigitsBench",
    "memory": "MemoryBench",
    "scaling": "ScalingBench",
    "preprocess": "PreprocessBench",
    "ingest": "IngestBench",
    "train": "TrainBench",
}


def run(name: str, settings: list[str] | None, *, debug: bool) -> None:
    """Import a bench, read its settings and run it."""
    with exit_codes(f"bench {name}", debug=debug):
        module, load = import_module(f"jobs.{name}_bench"), import_module("jobs.settings").load
        module.main(load(getattr(module, CONFIG_CLASSES[name]), None, settings or []))


@app.callback()
def benches() -> None:
    """Each bench is a command of its own."""


@app.command()
def decoding(settings: Settings = None, debug: Debug = False) -> None:
    """Drawing images with and without caches.

    Writes nothing but a table; ends with 1 where caches do not give what the plain way gives.
    `farreach settings bench decoding` lists its settings.
    """
    run("decoding", settings, debug=debug)


@app.command()
def operators(settings: Settings = None, debug: Debug = False) -> None:
    """Time and memory of attention operators against length.

    Writes a table, a picture and JSON into a folder; about 10 minutes on 2 quiet cores.
    `farreach settings bench operators` lists its settings.
    """
    run("operators", settings, debug=debug)


@app.command()
def digits(settings: Settings = None, debug: Debug = False) -> None:
    """FIT and ViX with every operator on one task of real digits.

    Writes tables, a picture and JSON into a folder; about 45 minutes on 2 quiet cores.
    `farreach settings bench digits` lists its settings.
    """
    run("digits", settings, debug=debug)


@app.command()
def memory(settings: Settings = None, debug: Debug = False) -> None:
    """Memory and time of a training step against image size.

    Writes tables, a picture and JSON into a folder.
    `farreach settings bench memory` lists its settings.
    """
    run("memory", settings, debug=debug)


@app.command()
def scaling(settings: Settings = None, debug: Debug = False) -> None:
    """Time of a training step against workers that share its image.

    `farreach settings bench scaling` lists its settings.
    """
    run("scaling", settings, debug=debug)


@app.command()
def preprocess(settings: Settings = None, debug: Debug = False) -> None:
    """Preprocessing beside bare decoding of the same windows.

    Writes a table, a picture and JSON into a folder; makes images of 5 GB for the time being.
    `farreach settings bench preprocess` lists its settings.
    """
    run("preprocess", settings, debug=debug)


@app.command()
def ingest(settings: Settings = None, debug: Debug = False) -> None:
    """Reading an epoch, beside raw bytes and four other readers.

    Writes tables, a picture and JSON into a folder, and keeps what is read in another.
    `farreach settings bench ingest` lists its settings.
    """
    run("ingest", settings, debug=debug)


@app.command()
def train(settings: Settings = None, debug: Debug = False) -> None:
    """What checkpoints and the guard cost a training.

    Writes a table, a picture and JSON into a folder.
    `farreach settings bench train` lists its settings.
    """
    run("train", settings, debug=debug)


if __name__ == "__main__":
    app()
