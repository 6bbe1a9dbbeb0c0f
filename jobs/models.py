"""Browse the registered models, move their aliases, and fetch them.

Example  farreach models pull scenes@champion ./champion
Reads    the MLflow store (MLFLOW_TRACKING_URI, else mlflow.db in the working folder)
Writes   pull: a folder with model.safetensors, config.json and MODEL_CARD.md
         promote: the alias
"""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs.runner import exit_codes

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False)

Address = Annotated[
    str, typer.Argument(metavar="MODEL", help="NAME@alias, NAME/version, or NAME for its newest.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only this model's versions.")] = None,
    debug: Debug = False,
) -> None:
    """Every version: its aliases, metrics and dataset."""
    with exit_codes("models list", debug=debug):
        from rich.console import Console
        from rich.table import Table

        from jobs import registry

        found = registry.list_versions(name)
        if not found:
            print("no models yet: `farreach train CONFIG.yaml` makes one")
            return
        table = Table("model", "version", "aliases", "scores", "dataset", "made", box=None)
        for each in found:
            table.add_row(
                each.name,
                str(each.version),
                ", ".join(each.aliases),
                metrics_of(each.metrics),
                each.tags.get("dataset_digest", "").removeprefix("sha256:")[:12],
                when(each.created_ms),
            )
        Console().print(table)


@app.command()
def show(model: Address, debug: Debug = False) -> None:
    """One version: where it comes from, and its card."""
    with exit_codes("models show", debug=debug):
        from rich.console import Console
        from rich.markdown import Markdown
        from rich.table import Table

        from jobs import registry

        found = registry.show(model)
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in {
            "model": f"{found.name} version {found.version}",
            "aliases": ", ".join(found.aliases) or "(none)",
            "made": when(found.created_ms),
            "run": found.run_id,
            "scores": metrics_of(found.metrics),
            **found.tags,
        }.items():
            table.add_row(name, value)
        console = Console()
        console.print(table)
        if found.description:
            console.print()
            console.print(Markdown(found.description))


@app.command()
def promote(
    model: Address,
    alias: Annotated[str, typer.Argument(help="The alias that shall point at it.")] = "champion",
    debug: Debug = False,
) -> None:
    """Point an alias at a version; it leaves the version it pointed at."""
    with exit_codes("models promote", debug=debug):
        from jobs import registry

        found = registry.promote(model, alias)
        print(f"{found.name}@{alias} is version {found.version}")


@app.command()
def pull(
    model: Address,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    debug: Debug = False,
) -> None:
    """Fetch a version as a folder that fit_model.weights.load reads."""
    with exit_codes("models pull", debug=debug):
        from jobs import registry

        found = registry.pull(model, folder)
        print(f"{found.name} version {found.version} is in {folder}")
        print(f'Load it:  python -c "from fit_model import weights; weights.load({str(folder)!r})"')


def metrics_of(metrics: dict[str, float]) -> str:
    """Scores in one cell; what training cost, and each noise level, stands in the run."""
    scores = {
        name: value
        for name, value in sorted(metrics.items())
        if not name.startswith(("system/", "final/")) and "/denoising_loss/t" not in name
    }
    return "\n".join(f"{name} {value:.4g}" for name, value in scores.items()) or "(not evaluated)"


def when(milliseconds: int) -> str:
    """A moment in the reader's own time."""
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    app()
