"""The command line: `farreach NAME CONFIG.yaml [key=value ...]`, same as `python -m jobs.NAME`.

Commands import their jobs only when they run, so that --help stays quick; a command's help is
the docstring of its module, read without importing it.
"""

import ast
import difflib
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from jobs import bench, models
from jobs.errors import UserError
from jobs.runner import exit_codes, module_name, run_config, run_entry, split_arguments

__all__ = ["app", "main", "run_entry"]

CONFIG_CLASSES = {
    "preprocess": "PreprocessConfig",
    "inspect": "InspectConfig",
    "verify": "VerifyConfig",
    "train": "TrainConfig",
    "verify-resume": "VerifyResumeConfig",
    "evaluate": "EvaluateConfig",
    "generate": "GenerateConfig",
    "demo": "DemoConfig",
    "plan": "PlanConfig",
}

DESCRIBED = {
    **{name: (module_name(name), kind) for name, kind in CONFIG_CLASSES.items()},
    **{
        f"bench {name}": (f"jobs.{name}_bench", kind) for name, kind in bench.CONFIG_CLASSES.items()
    },
}
"""Module and class of everything that has settings."""

app = typer.Typer(
    name="farreach",
    help="Train FIT end to end on gigabit- and gigapixel-scale images.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def module_help(name: str) -> str:
    """The docstring of jobs/NAME.py with its lines kept as they are."""
    path = Path(__file__).with_name(f"{name}.py")
    if not path.is_file():
        return f"Run jobs.{name}."
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    # click rewraps every paragraph that does not open with this mark
    return "\n\n".join("\b\n" + paragraph for paragraph in text.split("\n\n"))


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG.yaml key=value",
        help="A settings file, if there is one, and settings that replace those of the file.",
    ),
]
DatasetFirst = Annotated[
    list[str] | None,
    typer.Argument(metavar="DATASET key=value", help="A folder or s3://bucket/prefix; settings."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_job(name: str, settings: list[str] | None, *, debug: bool) -> None:
    """Import a job, read its settings and run it."""
    with exit_codes(name, debug=debug):
        path, overrides = split_arguments(name, settings or [])
        module = import_module(module_name(name))
        config_class = getattr(module, CONFIG_CLASSES[name])
        run_config(name, config_class, module.main, path=path, overrides=overrides)


@app.command(help=module_help("preprocess"))
def preprocess(settings: Settings = None, debug: Debug = False) -> None:
    """Cut images into patch groups."""
    run_job("preprocess", settings, debug=debug)


@app.command(help=module_help("inspect"))
def inspect(settings: DatasetFirst = None, debug: Debug = False) -> None:
    """Look at a dataset."""
    run_job("inspect", settings, debug=debug)


@app.command(help=module_help("verify"))
def verify(
    settings: DatasetFirst = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Store damaged images again from their sources.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check a dataset."""
    given = [*(settings or []), *(["repair=true"] if repair else [])]
    run_job("verify", given, debug=debug)


@app.command(help=module_help("train"))
def train(settings: Settings = None, debug: Debug = False) -> None:
    """Train a model."""
    run_job("train", settings, debug=debug)


@app.command(name="verify-resume", help=module_help("verify_resume"))
def verify_resume(settings: Settings = None, debug: Debug = False) -> None:
    """Kill a training and compare."""
    run_job("verify-resume", settings, debug=debug)


@app.command(help=module_help("evaluate"))
def evaluate(settings: Settings = None, debug: Debug = False) -> None:
    """Measure a model."""
    run_job("evaluate", settings, debug=debug)


@app.command(help=module_help("generate"))
def generate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL CONFIG.yaml key=value",
            help="NAME@alias, NAME/version or a folder; then a settings file, if there is one, and "
            "settings that replace those of the file.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make images with a model."""
    run_job("generate", settings, debug=debug)


@app.command(help=module_help("demo"))
def demo(settings: Settings = None, debug: Debug = False) -> None:
    """Run the whole road on a small dataset."""
    run_job("demo", settings, debug=debug)


@app.command(help=module_help("plan"))
def plan(
    settings: Settings = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run three real steps, too.")] = False,
    debug: Debug = False,
) -> None:
    """Say what fits."""
    given = [*(settings or []), *(["measure=true"] if measure else [])]
    run_job("plan", given, debug=debug)


@app.command(name="settings")
def settings_(
    name: Annotated[list[str], typer.Argument(metavar="NAME", help=f"{', '.join(DESCRIBED)}.")],
    debug: Debug = False,
) -> None:
    """Every setting of a job or a bench with its default.

    Example  farreach settings train
    """
    with exit_codes("settings", debug=debug):
        asked = " ".join(name)
        if asked not in DESCRIBED:
            close = difflib.get_close_matches(asked, DESCRIBED, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(
                f"no job '{asked}' has settings; {hint}choose of {', '.join(DESCRIBED)}"
            )
        module, kind = DESCRIBED[asked]
        describe = import_module("jobs.settings").describe
        for key, default in describe(getattr(import_module(module), kind)):
            print(f"{key:40} {default}")


@app.command(help=module_help("doctor"))
def doctor(debug: Debug = False) -> None:
    """Check this machine."""
    with exit_codes("doctor", debug=debug):
        import_module("jobs.doctor").main()


app.add_typer(models.app, name="models", help=module_help("models"))
app.add_typer(bench.app, name="bench", help=module_help("bench"))


@app.command(help=module_help("submit"))
def submit(
    name: Annotated[str, typer.Argument(metavar="NAME", help="preprocess, train, evaluate ...")],
    settings: Settings = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's job server; else RAY_API_SERVER_ADDRESS, else loopback."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Send a job to a Ray cluster."""
    with exit_codes("submit", debug=debug):
        path, overrides = split_arguments(name, settings or [])
        import_module("jobs.submit").main(name, path, overrides, address=address)


def main() -> None:
    """The `farreach` command."""
    app()


if __name__ == "__main__":
    main()
