"""Fixtures that several rooms share: the folder of real files and golden numbers, a local Ray."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real images; tests that need it skip without it."""
    folder = Path(os.environ.get("FARREACH_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set FARREACH_SHARED")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray with two CPUs and token authentication, one for the whole session."""
    from jobs.cluster import connect

    with connect(num_cpus=2):
        yield
