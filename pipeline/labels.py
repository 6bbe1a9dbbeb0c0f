"""Labels and splits: one row an image, checked before a pixel is read.

Text columns become classes (sorted names), numbers become targets unless the user calls them names
(`class_labels`). Where the table has no `split`, an image's split is a pure function of its id and
the seed:

    u = first 8 bytes of sha256("seed:image") / 2^64
    train while u < train, validation while u < train + validation, test above
"""

import difflib
import hashlib
import math
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import SPLITS, SplitConfig
from pipeline.schema import IMAGES
from pipeline.storage import Location
from pipeline.tables import read_table

Label = str | float | None
LABEL_NAME = re.compile(r"[\w.\- :/]{1,200}")
"""What the name of a metric may be in MLflow: scores are logged as `label/mae` and the like."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of every image besides its pixels."""

    columns: dict[str, str]
    """Label column -> "class" or "number"."""
    values: dict[str, dict[str, Label]]
    """Image -> label column -> value."""
    split: dict[str, str]

    def classes(self, images: Iterable[str]) -> dict[str, list[str]]:
        """The sorted class names that occur among these images, for every text column."""
        kept = list(images)
        return {
            name: sorted({str(v) for i in kept if (v := self.values[i][name]) is not None})
            for name, kind in self.columns.items()
            if kind == "class"
        }


def read_labels(
    uri: str | None, *, images: list[str], splits: SplitConfig, class_labels: tuple[str, ...] = ()
) -> Labels:
    """The labels of exactly these images; without a table only the splits.

    Columns in `class_labels` hold names of classes even where they look like numbers.
    """
    if uri is None:
        return Labels(
            columns={},
            values={image: {} for image in images},
            split={image: split_of(image, splits=splits) for image in images},
        )
    place = Location.of(uri)
    table = read_table(place, text_columns=("image", "split", *class_labels))
    if "image" not in table.column_names:
        raise ValueError(f"{place}: no column 'image'; it has {', '.join(table.column_names)}")
    _check_images(table.column("image").to_pylist(), images=images, place=place)
    columns = _label_columns(table.schema, place=place)
    unknown = [name for name in class_labels if name not in columns]
    if unknown:
        has = f"no label column; it has {', '.join(columns)}"
        raise ValueError(f"{place}: class_labels names {unknown[0]!r}, {has}")
    rows = {row["image"]: row for row in table.to_pylist()}
    values = {
        image: {
            name: _label(rows[image][name], kind=kind, of=f"{place}: {name!r} of image {image!r}")
            for name, kind in columns.items()
        }
        for image in images
    }
    for name in class_labels:
        lost = [image for image in images if str(values[image][name]).lower() == "nan"]
        if lost:
            raise ValueError(f"{place}: {name!r} of image {lost[0]!r} is nan; leave it empty")
    for image in images:
        if all(value is None for value in values[image].values()):
            raise ValueError(f"{place}: image {image!r} has no label; fill it in or take it out")
    if "split" in table.column_names:
        split = {image: _split(rows[image]["split"], image, place) for image in images}
    else:
        split = {image: split_of(image, splits=splits) for image in images}
    return Labels(columns=columns, values=values, split=split)


def split_of(image: str, *, splits: SplitConfig) -> str:
    """The split of an image by the equation above; other images do not matter."""
    digest = hashlib.sha256(f"{splits.seed}:{image}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < splits.train:
        return "train"
    return "validation" if place < splits.train + splits.validation else "test"


def _check_images(named: list[str | None], *, images: list[str], place: Location) -> None:
    known, seen = set(images), set()
    for image in named:
        if image is None:
            raise ValueError(f"{place}: a row has no image")
        if image in seen:
            raise ValueError(f"{place}: two labels for image {image!r}; keep one row")
        seen.add(image)
        if image not in known:
            near = difflib.get_close_matches(image, images, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; take the row out or add the image"
            raise ValueError(f"{place}: label for the unknown image {image!r}{hint}")
    missing = sorted(known - seen)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(
            f"{place}: image {missing[0]!r}{more} has no label; add a row or take it out"
        )


def _label_columns(schema: pa.Schema, *, place: Location) -> dict[str, str]:
    columns = {}
    for column in schema:
        if column.name in ("image", "split"):
            continue
        if column.name in IMAGES.names:
            raise ValueError(
                f"{place}: a label cannot be called {column.name!r}; rename the column"
            )
        if not _can_be_logged(column.name):
            raise ValueError(
                f"{place}: label {column.name!r} cannot be a metric's name in MLflow; rename it: "
                f"letters, digits, _ - . space : and single / inside"
            )
        held = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_integer(held) or pa.types.is_floating(held):
            columns[column.name] = "number"
        elif held in (pa.string(), pa.large_string(), pa.string_view(), pa.bool_()):
            columns[column.name] = "class"
        else:
            raise ValueError(f"{place}: label {column.name!r} is {held}; use text or numbers")
    if not columns:
        raise ValueError(f"{place}: no label column beside image and split")
    return columns


def _can_be_logged(name: str) -> bool:
    plain = posixpath.normpath(name) == name and name != "." and not name.startswith(("/", ".."))
    return plain and LABEL_NAME.fullmatch(name) is not None


def _label(value: object, *, kind: str, of: str) -> Label:
    if value is None:
        return None
    if kind == "class":
        return str(value).lower() if isinstance(value, bool) else str(value)
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"{of} is {value}; leave it empty or give a number")
    return number


def _split(value: str | None, image: str, place: Location) -> str:
    if value not in SPLITS:
        raise ValueError(
            f"{place}: split {value!r} of image {image!r} is none of {', '.join(SPLITS)}"
        )
    return value
