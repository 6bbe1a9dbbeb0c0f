"""The Python that the other readers run in: their pins first, this environment's packages after."""

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jobs
from jobs.operator_costs import LeftOut

PINS = Path(jobs.__file__).parent / "configs" / "bench" / "ingest-others.txt"
PATIENCE_S = 900.0


def python_of_others(folder: Path) -> Path | LeftOut:
    """Its interpreter, made below `folder` once for these pins; LeftOut where that fails."""
    name = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = folder / f"others-{name}"
    python, ready = place / "bin" / "python", place / "ready"
    if ready.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [*pip, "--no-deps", "--requirement", str(PINS)],
    ):
        failed = run(command)
        if failed:
            return LeftOut(why=f"its environment cannot be made: {failed}")
    below = packages_of(place) / "farreach.pth"
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    below.write_text("".join(f"{path}\n" for path in sorted(here)), encoding="utf-8")
    ready.touch()
    return python


def packages_of(place: Path) -> Path:
    """Where an environment keeps its packages."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))


def run(command: list[str]) -> str:
    """Why it failed, in one line; empty where it did not."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    return lines[-1] if done.returncode else ""
