"""Measure what a promise of speed is worth on this machine.

Example  farreach bench decoding width=128
         farreach bench operators output=operators
         farreach bench digits output=digits
         farreach bench memory output=memory
         farreach bench scaling workers='[1, 2]'
"""

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
}


@app.callback()
def benches() -> None:
    """Each bench is a command of its own."""


@app.command()
def decoding(settings: Settings = None, debug: Debug = False) -> None:
    """Drawing images with and without caches.

    Writes nothing but a table; ends with 1 where caches do not give what the plain way gives.
    `farreach settings bench decoding` lists its settings.
    """
    with exit_codes("bench decoding", debug=debug):
        from jobs import decoding_bench
        from jobs.settings import load

        decoding_bench.main(load(decoding_bench.DecodingBench, None, settings or []))


@app.command()
def operators(settings: Settings = None, debug: Debug = False) -> None:
    """Time and memory of attention operators against length.

    Writes a table, a picture and JSON into a folder; about 10 minutes on 2 quiet cores.
    `farreach settings bench operators` lists its settings.
    """
    with exit_codes("bench operators", debug=debug):
        from jobs import operators_bench
        from jobs.settings import load

        operators_bench.main(load(operators_bench.OperatorsBench, None, settings or []))


@app.command()
def digits(settings: Settings = None, debug: Debug = False) -> None:
    """FIT and ViX with every operator on one task of real digits.

    Writes tables, a picture and JSON into a folder; about 45 minutes on 2 quiet cores.
    `farreach settings bench digits` lists its settings.
    """
    with exit_codes("bench digits", debug=debug):
        from jobs import digits_bench
        from jobs.settings import load

        digits_bench.main(load(digits_bench.DigitsBench, None, settings or []))


@app.command()
def memory(settings: Settings = None, debug: Debug = False) -> None:
    """Memory and time of a training step against image size; settings in jobs/memory_bench.py.

    Writes tables, a picture and JSON into a folder.
    """
    with exit_codes("bench memory", debug=debug):
        from jobs import memory_bench
        from jobs.settings import load

        memory_bench.main(load(memory_bench.MemoryBench, None, settings or []))


@app.command()
def scaling(settings: Settings = None, debug: Debug = False) -> None:
    """Time of a training step against workers that share its image; see jobs/scaling_bench.py."""
    with exit_codes("bench scaling", debug=debug):
        from jobs import scaling_bench
        from jobs.settings import load

        scaling_bench.main(load(scaling_bench.ScalingBench, None, settings or []))


if __name__ == "__main__":
    app()
