"""What is made for many images on Ray workers, and what goes wrong there."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pytest
from rich.console import Console

from jobs.image_tasks import over_images
from jobs.runner import exit_codes
from jobs.workers import WorkersConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


@dataclass(frozen=True)
class Failing:
    """Raises at one of the images."""

    error: Exception

    def open(self):
        return self.work

    def work(self, numbers: Sequence[int]) -> pa.Array:
        if 1 in numbers:
            raise self.error
        return pa.array([10 * number for number in numbers])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("image 'a': a pixel is 9"), 2, "image 'a': a pixel is 9"),
        (FileNotFoundError(2, "No such file", "/shard"), 2, "/shard: No such file"),
        (OSError("the disk is full"), 1, "OSError: the disk is full (--debug shows the traceback)"),
    ],
)
def test_what_a_worker_raises_is_told_in_its_own_words(error, status, line, capsys):
    made = over_images(
        Failing(error),
        3,
        images_per_batch=1,
        config=WorkersConfig(),
        description="make",
        console=Console(quiet=True),
    )
    with pytest.raises(SystemExit) as caught, exit_codes("evaluate"):
        list(made)
    assert caught.value.code == status
    assert capsys.readouterr().err.splitlines() == [f"farreach evaluate: {line}"]
