"""Measure what a promise of speed is worth on this machine.

Example  farreach bench decoding width=128
Writes   nothing but a table; ends with 1 where the fast way does not give what the plain one gives
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


@app.callback()
def benches() -> None:
    """Each bench is a command of its own, also while there is only one."""


@app.command()
def decoding(settings: Settings = None, debug: Debug = False) -> None:
    """Drawing images with and without caches; see jobs/decoding_bench.py for the settings."""
    with exit_codes("bench decoding", debug=debug):
        from jobs import decoding_bench
        from jobs.settings import load

        decoding_bench.main(load(decoding_bench.DecodingBench, None, settings or []))


if __name__ == "__main__":
    app()
