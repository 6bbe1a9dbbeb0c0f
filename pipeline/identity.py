"""What tells one version of a source from another without reading it: its size, and a tag.

The tag is the ETag on S3 and the time of the last change, in ns, on a local disk. Costs: a stat a
local file; on S3 a request for every 1,000 objects of a folder, or one for each of a few files.
"""

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipeline.storage import Location, explained

LISTED_FROM = 8
"""So many files of one remote folder are looked up by listing it."""
REQUESTS_AT_ONCE = 16


class Identity(NamedTuple):
    """Size and tag; both None where a source is named but cannot be reached."""

    source_bytes: int | None
    source_tag: str | None


def identities_below(folder: Location) -> dict[str, Identity]:
    """Every file below a folder, as relative path -> identity."""
    listing = folder.listing()
    if not folder.is_local:
        return {name: _told(info) for name, info in listing.items()}
    found = {}
    for name in listing:
        found[name] = Identity(None, None)
        with suppress(OSError):
            found[name] = _local(folder.child(name)) or found[name]
    return found


def identities_of(places: list[Location]) -> dict[Location, Identity]:
    """Of these files; those that are not there are missing from the answer."""
    found = {place: _local(place) for place in places if place.is_local}
    folders: dict[Location, list[Location]] = defaultdict(list)
    for place in places:
        if not place.is_local:
            parent = str(PurePosixPath(place.path).parent)
            folders[Location(scheme=place.scheme, path=parent)].append(place)
    single = []
    for folder, members in folders.items():
        if len(members) < LISTED_FROM:
            single += members
        else:
            listed = _listed(folder)
            found |= {place: listed.get(place.path) for place in members}
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found |= dict(zip(single, pool.map(_remote, single), strict=True))
    return {place: identity for place, identity in found.items() if identity is not None}


def _local(place: Location) -> Identity | None:
    try:
        with explained(place):
            status = os.stat(place.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Identity(status.st_size, str(status.st_mtime_ns))


def _remote(place: Location) -> Identity | None:
    try:
        with explained(place):
            return _told(place.filesystem.info(place.path))
    except FileNotFoundError:
        return None


def _listed(folder: Location) -> dict[str, Identity]:
    try:
        with explained(folder):
            infos = folder.filesystem.ls(folder.path, detail=True)
    except FileNotFoundError:
        return {}
    return {info["name"]: _told(info) for info in infos}


def _told(info: dict[str, Any]) -> Identity:
    tag = info.get("ETag")
    return Identity(info.get("size"), None if tag is None else tag.strip('"'))
