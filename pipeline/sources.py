"""From what the user named to a table of images: an id, a place and an identity each.

    a folder     every known image below it; id = path below the folder without its suffix
    files        id = file name without its suffix
    a table      column `uri` (relative ones count from the table), optional `image` = id

Ids are what labels refer to, so two images may not share one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa

from pipeline.identity import Identity, identities_below, identities_of
from pipeline.readers.open import SUFFIXES, suffix_of
from pipeline.storage import Location
from pipeline.tables import is_table, read_table

SOURCES = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("source_bytes", pa.int64()),  # null, as the tag is, where the source cannot be reached
        ("source_tag", pa.string()),
    ]
)
ID_PART = re.compile(r"[^\\/\x00-\x1f\x7f\ud800-\udfff]{1,255}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images of a job, and the files beside them that are none."""

    images: pa.Table
    """SOURCES, sorted by image_id."""
    ignored_files: list[str] = field(default_factory=list)


def find_images(sources: str | list[str]) -> Found:
    """The images that `sources` names; ValueError or FileNotFoundError names what is wrong."""
    if isinstance(sources, list):
        return Found(images=_present(_files(Location.of(uri) for uri in sources)))
    place = Location.of(sources)
    if is_table(sources):
        return Found(images=_present(_rows(place)))
    if suffix_of(sources) in SUFFIXES and not place.is_folder():
        return Found(images=_present(_files([place])))
    return _folder(place)


def _folder(place: Location) -> Found:
    names = identities_below(place)
    if not names and not place.exists():
        raise FileNotFoundError(
            f"{place}: no such folder; sources names a folder, files or a table"
        )
    # DICOM slides are several files of one image: a folder cannot say which one stands for it.
    known = [
        name for name in sorted(names) if suffix_of(name) in SUFFIXES and suffix_of(name) != ".dcm"
    ]
    if not known:
        raise ValueError(
            f"{place}: no image among its {len(names)} file(s); known are {', '.join(SUFFIXES)}"
        )
    named = [
        (str(PurePosixPath(name).with_suffix("")), place.child(name), names[name]) for name in known
    ]
    return Found(images=_table(named), ignored_files=sorted(set(names) - set(known)))


def _files(places: Iterable[Location]) -> list[tuple[str, Location]]:
    return [(PurePosixPath(place.path).stem, place) for place in places]


def _rows(table: Location) -> list[tuple[str, Location]]:
    rows = read_table(table, text_columns=("uri", "image"))
    if "uri" not in rows.column_names:
        raise ValueError(f"{table}: no column 'uri'; it has {', '.join(rows.column_names)}")
    base = str(PurePosixPath(table.path).parent)
    pairs = []
    for row in rows.to_pylist():
        uri = row["uri"]
        if not uri:
            raise ValueError(f"{table}: a row has no uri")
        place = Location.of(uri, base=base)
        if not table.is_local and "://" not in uri:
            place = Location(scheme=table.scheme, path=f"{base}/{uri}")
        image = row.get("image") or PurePosixPath(place.path).stem
        pairs.append((image, place))
    return pairs


def _present(pairs: list[tuple[str, Location]]) -> pa.Table:
    """Files that somebody named must be there."""
    for _, place in pairs:
        if place.is_local and Path(place.path).is_dir():
            raise ValueError(f"{place} is a folder: give it alone, or list the images in it")
        if suffix_of(place.path) not in SUFFIXES:
            raise ValueError(f"{place}: no known image suffix; known are {', '.join(SUFFIXES)}")
    there = identities_of([place for _, place in pairs])
    for _, place in pairs:
        if place not in there:
            raise FileNotFoundError(f"{place}: not found")
    return _table([(image, place, there[place]) for image, place in pairs])


def _table(named: list[tuple[str, Location, Identity]]) -> pa.Table:
    if not named:
        raise ValueError("sources names no image")
    seen: dict[str, Location] = {}
    for image, place, _ in named:
        check_id(image, place=place)
        if image in seen:
            raise ValueError(
                f"two images are called {image!r}: {seen[image]} and {place}; "
                f"rename one, or give a table with columns uri and image"
            )
        seen[image] = place
    rows = [
        {"image_id": image, "uri": str(place), **identity._asdict()}
        for image, place, identity in sorted(named, key=lambda each: each[0])
    ]
    return pa.Table.from_pylist(rows, schema=SOURCES)


def check_id(image: str, *, place: Location) -> None:
    """An id is a relative path of plain parts: it may end up in file names."""
    parts = image.split("/")
    if not all(ID_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise ValueError(f"{place}: {image!r} cannot be an image's id: use a plain relative name")
