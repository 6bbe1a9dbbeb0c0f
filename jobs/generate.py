"""Make new images with a diffusion or an autoregressive model, or complete images that begin.

Run      farreach generate MODEL [CONFIG.yaml] [key=value ...]
Submit   farreach submit generate MODEL [CONFIG.yaml] [key=value ...] --address http://HEAD:8265
Reads    MODEL (or `model`): NAME@alias or NAME/version of the registry, or a folder; to complete
         images also `complete.dataset`
Writes   `output`/images: a file an image with pixel values as in training (PNG, else TIFF);
         labels.csv, grid.png to look at, settings.json; a new MLflow run with the last two
Needs    a CPU core (or a GPU) a worker
Again    the same seed makes the same images, on any number of workers; an output that exists is
         refused

Example  farreach generate digits@champion output=made num_images=100 diffusion.guidance=2
"""

import csv
import hashlib
import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from fit_model import weights
from jobs.cluster import connect, require_lasting
from jobs.contact_sheet import contact_sheet, sheet_rows
from jobs.image_tasks import over_images
from jobs.model_source import Source, source
from jobs.orders import GenerateConfig, Order, order_of
from jobs.pixel_files import decoded, encoded, suffix_of
from jobs.settings import to_dict, to_flat_dict
from jobs.tracking import Run, open_run
from jobs.whole_folder import drafted, require_new
from jobs.workers import require_workers
from pipeline.storage import Location

__all__ = ["GenerateConfig", "main"]

IMAGES, LABELS, GRID, SETTINGS = "images", "labels.csv", "grid.png", "settings.json"


def main(config: GenerateConfig) -> str:
    """Draw every image on Ray workers, write and record them; where they lie."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    require_lasting(output=config.output)
    output = Location.of(config.output)
    require_new(output, name="output")
    with source(config.model) as found:
        order = order_of(weights.load(found.folder), config)
        with connect():
            require_workers(config.workers)
            with recorded(config, found, order) as run, drafted(output, last=SETTINGS) as draft:
                started = time.monotonic()
                write_images(order, draft / IMAGES, config=config, console=console)
                seconds = time.monotonic() - started
                write_labels(order, draft / LABELS)
                (draft / GRID).write_bytes(sheet(order, draft / IMAGES))
                (draft / SETTINGS).write_text(settings_text(config, found, order))
                for name in (GRID, SETTINGS):
                    run.log_file(draft / name)
    tell(order, output, seconds=seconds, console=console)
    return str(output)


def recorded(config: GenerateConfig, found: Source, order: Order) -> AbstractContextManager[Run]:
    """A new run with the settings, tagged with the run and version that the model is from."""
    tags: dict[str, Any] = {"model_digest": digest_of(found)}
    if found.registered is not None:
        tags |= {
            "source_run_id": found.registered.run_id,
            "source_model": found.registered.name,
            "source_version": found.registered.version,
        }
    return open_run(
        config.experiment,
        name=f"generate {config.model}",
        params=read_settings(to_flat_dict(config), order),
        tags=tags,
    )


def write_images(order: Order, folder: Path, *, config: GenerateConfig, console: Console) -> None:
    """A file an image, as they come from the workers."""
    folder.mkdir()
    made = over_images(
        order.request,
        order.num_images,
        images_per_batch=min(config.images_per_batch, order.images_together),
        config=config.workers,
        description="generate",
        console=console,
    )
    for number, content in made:
        (folder / file_name(order, number)).write_bytes(content)


def image_name(order: Order, number: int) -> str:
    """The image's name in labels.csv, of equal length for all."""
    return f"{number:0{max(5, len(str(order.num_images - 1)))}d}"


def file_name(order: Order, number: int) -> str:
    """The image's file."""
    suffix = suffix_of(dtype=order.head.pixel_dtype, bands=order.bands)
    return image_name(order, number) + suffix


def write_labels(order: Order, path: Path) -> None:
    """The class that every image was asked for; no file where the model knows none."""
    if not order.labels:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = ((image_name(order, number), name) for number, name in enumerate(order.labels))
        csv.writer(file).writerows([("image", "label"), *rows])


def sheet(order: Order, folder: Path) -> bytes:
    """The first pictures of every class, stretched to what people see."""
    rows = sheet_rows(order.labels or [""] * order.num_images)
    pictures = (
        (decoded((folder / file_name(order, number)).read_bytes()) for number in row)
        for row in rows
    )
    pixel_range = order.head.pixel_low, order.head.pixel_high
    return encoded(contact_sheet(pictures, pixel_range=pixel_range))


def settings_text(config: GenerateConfig, found: Source, order: Order) -> str:
    """What made these images, as JSON."""
    known = found.registered
    facts = {
        "settings": read_settings(to_dict(config), order),
        "model": {
            "digest": digest_of(found),
            "name": known and known.name,
            "version": known and known.version,
            "run_id": known and known.run_id,
            "dataset_digest": known and known.tags.get("dataset_digest"),
        },
        "images": order.num_images,
        "grid": order.grid,
        "completed": list(order.begun),
        "pixels": to_dict(order.head),
    }
    return json.dumps(facts, indent=2) + "\n"


def read_settings(settings: dict[str, Any], order: Order) -> dict[str, Any]:
    """Without those for the other kind of model, which nothing reads."""
    kind = order.request.model.config.face.kind
    others = {"diffusion", "autoregressive"} - {kind}
    return {key: value for key, value in settings.items() if key.partition(".")[0] not in others}


def digest_of(found: Source) -> str:
    """Of the weights: the same model wherever it lies."""
    with (found.folder / weights.WEIGHTS).open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def tell(order: Order, output: Location, *, seconds: float, console: Console) -> None:
    """What was written, how quickly, and what to type next."""
    speed = order.num_images / seconds
    console.print(f"{order.num_images} image(s) in {seconds:.1f} s ({speed:.3g} images/s)")
    labels = f", {LABELS}" if order.labels else ""
    console.print(f"wrote {output}: {IMAGES}/, {GRID} to look at{labels}, {SETTINGS}")
    labels = f" labels={output}/{LABELS}" if order.labels else ""
    if order.labels and all(map(_is_number, order.labels)):
        labels += " class_labels=[label]"
    source = order.request.model.config
    console.print(
        f"next: farreach preprocess sources={output}/{IMAGES}{labels} output=DATASET "
        f"grouping.group_side_px={source.input.group_side_px} "
        f"grouping.patch_px={source.face.patch_px}"
    )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(GenerateConfig, main, "generate")
