"""Worlds of workers for the tests of group parallelism."""

from collections.abc import Iterator

import pytest

from tests.fit_model.parallel.world import World


@pytest.fixture(scope="package")
def world(tmp_path_factory) -> Iterator[World]:
    """Four workers: one group set, or two."""
    made = World(4, tmp_path_factory.mktemp("world"))
    yield made
    made.close()


@pytest.fixture
def pair(tmp_path) -> Iterator[World]:
    """Two workers that nobody needs afterwards."""
    made = World(2, tmp_path)
    yield made
    made.close()
