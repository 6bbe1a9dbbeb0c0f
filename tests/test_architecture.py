"""The house rules that a machine can hold: who may import whom, and how large things may grow."""

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("fit_model", "pipeline", "jobs")
FILES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
ENTRY_POINTS = (
    "preprocess", "inspect", "verify", "train", "evaluate", "predict", "models", "submit", "doctor",
    "demo", "plan", "generate", "bench", "verify_resume",
)  # fmt: skip
MODEL_IMPORTS = {"fit_model", "torch", "numpy", "safetensors", "jaxtyping"}
MAX_LINES, MAX_FUNCTION_LINES = 300, 60


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file may import, wherever the statement stands."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)} imports relatively: write the full name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def room(name: str) -> list[Path]:
    return [path for path in FILES if path.is_relative_to(REPOSITORY / name)]


@pytest.mark.parametrize("path", room("fit_model"), ids=named)
def test_models_know_tensors_alone(path):
    assert packages(path) <= MODEL_IMPORTS | sys.stdlib_module_names


@pytest.mark.parametrize("path", room("fit_model"), ids=named)
def test_shapes_are_checked_where_they_are_promised(path):
    assert "__future__.annotations" not in imports(path)


@pytest.mark.parametrize("path", room("pipeline"), ids=named)
def test_the_pipeline_knows_no_tensors_and_only_its_flow_knows_ray(path):
    forbidden = {"torch", "deepspeed", "mlflow", "fit_model", "jobs"}
    forbidden |= set() if path.name == "flow.py" else {"ray"}
    assert not packages(path) & forbidden


@pytest.mark.parametrize(
    "path", [path for path in room("jobs") if path.stem in ENTRY_POINTS], ids=named
)
def test_entry_points_do_not_import_each_other(path):
    others = {f"jobs.{name}" for name in ENTRY_POINTS} - {f"jobs.{path.stem}"}
    assert not imports(path) & others


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_imports_infra_or_the_tests(path):
    assert not packages(path) & {"infra", "tests"}


@pytest.mark.parametrize("path", FILES + TESTS, ids=named)
def test_files_are_named_for_what_is_in_them(path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_stay_short_and_say_what_they_are(path):
    parsed = tree(path)
    assert ast.get_docstring(parsed), "no module docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in ast.walk(parsed):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=named)
def test_packages_hold_a_docstring_and_nothing_else(path):
    assert len(tree(path).body) == 1
