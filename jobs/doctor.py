"""Check whether this machine can do the work, and say what to do where it cannot.

Example  farreach doctor
Reads    this machine, and the stores that the environment names (MLFLOW_TRACKING_URI, RAY_ADDRESS)
Writes   nothing but the table; ends with 1 if a check fails, with 0 if it only warns
"""

import importlib
import os
import platform
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jobs.cluster import require_reachable, token_path
from jobs.mlflow_store import require_tracking, without_password

MIN_MEMORY_GB = 4.0
MIN_DISK_GB = 5.0
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check saw; the remedy stands where the outcome is not ok."""

    outcome: Literal["ok", "warn", "fail"]
    seen: str
    remedy: str = ""


def ok(seen: str) -> Finding:
    """Nothing to do."""
    return Finding(outcome="ok", seen=seen)


def warn(seen: str, remedy: str) -> Finding:
    """Works, though not for everything."""
    return Finding(outcome="warn", seen=seen, remedy=remedy)


def python() -> Finding:
    """The interpreter."""
    return ok(f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def torch() -> Finding:
    """The tensor library and its accelerators."""
    import torch

    if torch.cuda.is_available():
        return ok(f"{torch.__version__}, {torch.cuda.device_count()} GPU(s)")
    return ok(f"{torch.__version__}, no GPU: training runs on CPU workers")


def cores() -> Finding:
    """Cores this process may use, and the threads it would start."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    seen = f"{allowed} cores, OMP_NUM_THREADS {threads}"
    if threads.isdigit() and int(threads) > (allowed or 1):
        return warn(seen, f"set OMP_NUM_THREADS to at most {allowed}")
    return ok(seen)


def memory() -> Finding:
    """Memory that is free now."""
    import psutil

    free = psutil.virtual_memory()
    seen = f"{free.available / GB:.1f} GB free of {free.total / GB:.1f} GB"
    if free.available / GB < MIN_MEMORY_GB:
        return warn(seen, f"two small workers want {MIN_MEMORY_GB:g} GB: close programs")
    return ok(seen)


def disk() -> Finding:
    """Disk in the working folder and where Ray spills."""
    free = min(shutil.disk_usage(place).free for place in (os.getcwd(), "/tmp")) / GB  # noqa: S108
    seen = f"{free:.1f} GB free here and in /tmp"
    if free < MIN_DISK_GB:
        return warn(seen, f"free {MIN_DISK_GB:g} GB: Ray spills to /tmp")
    return ok(seen)


def compiler() -> Finding:
    """What DeepSpeed's optional operators are built with."""
    found = next((path for name in ("g++", "c++") if (path := shutil.which(name))), None)
    if found is None:
        return warn("no C++ compiler", "install g++: DeepSpeed builds some operators at first use")
    return ok(found)


def ray() -> Finding:
    """The cluster or, without one, the library."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return ok(f"{ray.__version__}, local: started and stopped by each job")
    require_reachable(address)
    return ok(f"{ray.__version__}, the cluster at {address} answers")


def ray_token() -> Finding:
    """Whether a token exists, and who may read it."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return warn("off (RAY_AUTH_MODE)", "unset RAY_AUTH_MODE: anyone who reaches Ray runs code")
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return ok("from the environment")
    path = token_path()
    if not path.is_file():
        return ok("none yet: the first job makes one")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return warn(f"{path} can be read by others", f"chmod 600 {path}")
    return ok(str(path))


def deepspeed() -> Finding:
    """The training engine's accelerator."""
    if not _has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    return ok(f"{deepspeed.__version__} on {get_accelerator().device_name()}")


def collectives() -> Finding:
    """How workers exchange gradients."""
    from torch import distributed

    found = [
        name
        for name, there in (
            ("gloo", distributed.is_available() and distributed.is_gloo_available()),
            ("nccl", distributed.is_available() and distributed.is_nccl_available()),
        )
        if there
    ]
    needed = "nccl" if _has_gpu() else "gloo"
    if needed not in found:
        remedy = f"install a build of torch with {needed}"
        return Finding(outcome="fail", seen=", ".join(found) or "none", remedy=remedy)
    return ok(", ".join(found))


def readers() -> Finding:
    """The libraries that read images."""
    openslide = importlib.import_module("openslide")
    rasterio = importlib.import_module("rasterio")
    gdal = rasterio.__gdal_version__
    library = openslide.__library_version__
    return ok(f"rasterio {rasterio.__version__} (GDAL {gdal}), openslide {library}")


def mlflow() -> Finding:
    """Where runs and models are kept."""
    uri = require_tracking()
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:///") or os.path.exists(uri.removeprefix("sqlite:///")):
        MlflowClient().search_experiments(max_results=1)
        return ok(without_password(uri))
    return ok(f"{without_password(uri)} (made by the first run)")


def _has_gpu() -> bool:
    return importlib.import_module("torch").cuda.is_available()


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": python,
    "torch": torch,
    "cores": cores,
    "memory": memory,
    "disk": disk,
    "C++ compiler": compiler,
    "Ray": ray,
    "Ray token": ray_token,
    "DeepSpeed": deepspeed,
    "collectives": collectives,
    "image readers": readers,
    "MLflow": mlflow,
}
"""In the order of the table."""


def examine(check: Callable[[], Finding]) -> Finding:
    """A check's finding; what it raises is one."""
    try:
        return check()
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        remedy = "pip install -c constraints.txt -e ." if isinstance(error, ImportError) else ""
        return Finding(outcome="fail", seen=line or type(error).__name__, remedy=remedy)


def main() -> None:
    """Print the table; ends the process with 1 if a check failed."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "check", "seen", "remedy", box=None, pad_edge=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    findings = {name: examine(check) for name, check in CHECKS.items()}
    for name, finding in findings.items():
        outcome = f"[{colours[finding.outcome]}]{finding.outcome}[/]"
        table.add_row(outcome, name, finding.seen, finding.remedy)
    Console().print(table)
    if any(finding.outcome == "fail" for finding in findings.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
