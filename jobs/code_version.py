"""Which code runs: the installed version, and the commit where it runs from a checkout."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

GIT_TIMEOUT_S = 5.0


def code_version() -> str:
    """The installed version of this package."""
    try:
        return version("farreach")
    except PackageNotFoundError:
        return "not installed"


def code_tags() -> dict[str, str]:
    """Which code ran: the version, and the commit where it runs from a checkout."""
    tags = {"farreach_version": code_version()}
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / ".git").exists():
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command
                ["git", "-C", str(checkout), "rev-parse", "HEAD"],  # noqa: S607
                capture_output=True,
                text=True,
                timeout=GIT_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return tags
        tags["git_commit"] = done.stdout.strip()
    return tags
