"""New images on Ray workers: what they are told, and the files that they give back.

The chance of an image comes from the seed and the image's number alone, so that neither batches
nor workers change what is made (beyond the rounding of arithmetic).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fit_model.canvas import Canvas
from fit_model.choosing import DecodingConfig
from fit_model.model import Model
from fit_model.samplers import SamplingConfig
from jobs.batches import image_seed, read_images
from jobs.image_tasks import Work
from jobs.pixel_files import encoded
from pipeline.dataset import ImageRecord, open_dataset


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every image is made from."""

    model: Model
    targets: Tensor | None
    """The class of every image; None for a model without classes."""
    seed: int
    sampling: SamplingConfig | DecodingConfig
    device: Literal["cpu", "gpu"]
    threads: int

    @property
    def computes_on(self) -> str:
        """Torch's name of the device."""
        return "cuda" if self.device == "gpu" else "cpu"

    def ready(self) -> Any:
        """The model where it computes."""
        torch.set_num_threads(self.threads)
        return self.model.to(self.computes_on).eval()


@dataclass(frozen=True, kw_only=True)
class Drawing(Request):
    """Images from nothing but a class: all of one size."""

    canvas: Canvas

    @property
    def canvases(self) -> set[Canvas]:
        """The sizes of images."""
        return {self.canvas}

    def open(self) -> Work:
        """Load the model."""
        return Painter(self)


@dataclass(frozen=True, kw_only=True)
class Completing(Request):
    """Images of a dataset of which the first patches are kept and the rest is drawn."""

    dataset: str
    records: tuple[ImageRecord, ...]
    patches: int
    """Kept of every image."""

    @property
    def canvases(self) -> set[Canvas]:
        """The sizes of images."""
        return {canvas_of_record(record) for record in self.records}

    def open(self) -> Work:
        """Load the model, and open the dataset."""
        return Completer(self)


class Painter:
    """A model that is ready to draw."""

    def __init__(self, held: Drawing) -> None:
        self.held = held
        self.model = held.ready()

    def __call__(self, numbers: Sequence[int]) -> pa.Array:
        """The file of every image."""
        canvas = self.held.canvas
        return files(draw(self.model, self.held, numbers, canvas=canvas))


class Completer:
    """A model and a dataset, ready."""

    def __init__(self, held: Completing) -> None:
        self.held = held
        self.model = held.ready()
        self.dataset = open_dataset(held.dataset)

    def __call__(self, numbers: Sequence[int]) -> pa.Array:
        """The file of every image; images of one size are drawn together.

        Fails on a group whose checksum is wrong and on pixels beyond the model's range, naming the
        image.
        """
        made: dict[int, NDArray] = {}
        sizes = {number: canvas_of_record(self.held.records[number]) for number in numbers}
        for canvas in set(sizes.values()):
            same = [number for number in numbers if sizes[number] == canvas]
            records = [self.held.records[number] for number in same]
            given = read_images(self.dataset, records, head=self.model.config.head)
            known = self.model.first_patches(given, num_patches=self.held.patches)
            drawn = draw(
                self.model, self.held, same, canvas=canvas, known=known.to(self.held.computes_on)
            )
            made |= dict(zip(same, drawn, strict=True))
        return files([made[number] for number in numbers])


def canvas_of_record(record: ImageRecord) -> Canvas:
    """The grid of a stored image."""
    return Canvas(rows=record.grid_rows, columns=record.grid_columns)


def draw(
    model: Any,
    held: Request,
    numbers: Sequence[int],
    *,
    canvas: Canvas,
    **known: Tensor,
) -> list[NDArray]:
    """Pictures [height, width, bands] of these numbers."""
    places = canvas.places(len(numbers), device=torch.device(held.computes_on))
    seeds = [image_seed(held.seed, step=0, image=number) for number in numbers]
    with torch.inference_mode():
        groups = model.generate(
            places,
            targets=None if held.targets is None else held.targets[list(numbers)],
            seeds=torch.tensor(seeds),
            sampling=held.sampling,
            **known,
        )
        return list(canvas.pictures(groups.cpu()).numpy())


def files(pictures: Sequence[NDArray]) -> pa.Array:
    """Pictures as files."""
    return pa.array([encoded(picture) for picture in pictures], pa.large_binary())
