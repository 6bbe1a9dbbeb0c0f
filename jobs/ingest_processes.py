"""A task of `jobs.ingest_child` in a process of its own, in whatever environment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import jobs
from jobs.ingest_child import Task
from jobs.ingest_epochs import Timed
from jobs.operator_costs import LeftOut

REPOSITORY = Path(jobs.__file__).parents[1]


def in_process(
    task: Task,
    *,
    patience_s: float,
    python: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Timed | LeftOut | None:
    """What the task gives, LeftOut where it failed, died or took longer; its children die with it.

    Args:
        task: `source.scratch` is a folder that exists.
        patience_s: for its whole life.
        python: this one where there is none.
        environment: on top of this process's.
    """
    with TemporaryDirectory(dir=task.source.scratch, prefix="task-") as folder:
        asked, answer = Path(folder) / "task.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(asdict(task)), encoding="utf-8")
        process = subprocess.Popen(  # noqa: S603 - our own command
            [str(python or sys.executable), "-m", "jobs.ingest_child", str(asked), str(answer)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return LeftOut(why=f"> {patience_s:g} s")
        finally:
            end(process)
        if not answer.exists():
            return LeftOut(why=f"died ({process.returncode})")
        said = json.loads(answer.read_text(encoding="utf-8"))
    if "failed" in said:
        return LeftOut(why=said["failed"])
    return Timed(**said["found"]) if said["found"] else None


def end(process: "subprocess.Popen[bytes]") -> None:
    """The process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
