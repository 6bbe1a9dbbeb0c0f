"""Where things lie: a folder or an S3 bucket, through fsspec, with errors a user can act on.

Credentials, region and endpoint come from the environment as every AWS client reads them
(AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, ...); no setting holds a secret.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError  # type: ignore[import-untyped]

SCHEMES = ("file", "s3")
DELETED_AT_ONCE = 16
COPIED_BYTES = 8 << 20
ALREADY_THERE = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file or folder; `path` is what its filesystem understands."""

    scheme: str
    path: str

    @staticmethod
    def of(uri: str, *, base: str = "") -> "Location":
        """Local paths become absolute (from `base`, else the working folder); ~ is the home."""
        scheme, mark, rest = uri.partition("://")
        if not mark:
            path = os.path.join(base, os.path.expanduser(uri))
            return Location(scheme="file", path=os.path.abspath(path))
        if scheme == "file":
            return Location(scheme="file", path=os.path.abspath(rest))
        if scheme not in SCHEMES or "::" in uri:
            raise ValueError(f"{uri}: only local paths and s3:// can be read or written")
        if not rest.strip("/"):
            raise ValueError(f"{uri}: name a bucket, as in s3://bucket/prefix")
        return Location(scheme=scheme, path=rest.rstrip("/"))

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.scheme}://{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether other libraries can open `path` as a file."""
        return self.scheme == "file"

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem that understands `path`."""
        # A cached listing would miss what other workers have written since.
        options = {} if self.is_local else {"use_listings_cache": False}
        return fsspec.filesystem(self.scheme, **options)

    def child(self, name: str) -> "Location":
        """What lies below under a relative name."""
        return Location(scheme=self.scheme, path=f"{self.path.rstrip('/')}/{name}")

    @contextlib.contextmanager
    def reader(self) -> Iterator[Any]:
        """An open binary file."""
        with explained(self), self.filesystem.open(self.path, "rb") as source:
            yield source

    def read_bytes(self) -> bytes:
        """The whole content."""
        with explained(self):
            return self.filesystem.cat_file(self.path)

    def read_range(self, start: int, size: int) -> bytes:
        """One ranged read; shorter only where the file is."""
        with explained(self):
            try:
                return self.filesystem.cat_file(self.path, start=start, end=start + size)
            except OSError as error:
                if _begins_behind_the_end(error):
                    return b""
                raise

    def size(self) -> int:
        """Bytes."""
        with explained(self):
            return int(self.filesystem.info(self.path)["size"])

    def exists(self) -> bool:
        """Whether there is a file or folder; a bucket that refuses is an error."""
        with explained(self):
            try:
                self.filesystem.info(self.path)
            except FileNotFoundError:
                return False
            return True

    def is_folder(self) -> bool:
        """Whether it is a folder, or a prefix with something below."""
        with explained(self):
            return bool(self.filesystem.isdir(self.path))

    def files(self) -> list[str]:
        """Every file below, as sorted paths relative to here; none when the folder is absent."""
        return sorted(self.listing())

    def files_here(self) -> list[str]:
        """The same without what lies in folders below: a request for every 1,000 names."""
        return sorted(self.listing_here())

    def listing(self) -> dict[str, dict[str, Any]]:
        """What the filesystem says of every file below, under its path relative to here."""
        with explained(self):
            try:
                found = self.filesystem.find(self.path, detail=True)
            except FileNotFoundError:
                if self.is_local or self.filesystem.exists(self.path.split("/")[0]):
                    return {}
                raise
        return self._relative(found)

    def listing_here(self) -> dict[str, dict[str, Any]]:
        """What the filesystem says of every file right here, under its name."""
        with explained(self):
            try:
                # not `find` with a depth: that takes a store that does not answer for an empty one
                found = self.filesystem.ls(self.path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        files = {info["name"]: info for info in found if info["type"] != "directory"}
        return self._relative(files)

    def _relative(self, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        root = self.path.rstrip("/") + "/"
        return {
            name.removeprefix(root): info for name, info in found.items() if name.startswith(root)
        }

    @contextlib.contextmanager
    def writer(self) -> Iterator[Path]:
        """A draft on the local disk that becomes this file, whole, when the block ends well.

        A block that leaves no draft writes nothing.
        """
        if self.is_local:
            final = Path(self.path)
            with explained(self):
                final.parent.mkdir(parents=True, exist_ok=True)
            draft = final.with_name(f".{final.name}.partial-{uuid4().hex[:8]}")
            try:
                yield draft
                if draft.exists():
                    draft.replace(final)
            finally:
                draft.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="farreach-") as folder:
            draft = Path(folder) / "draft"
            yield draft
            if not draft.exists():
                return
            with explained(self):
                self.filesystem.put_file(str(draft), self.path)

    def write_bytes(self, content: bytes) -> None:
        """Write a small file, atomically."""
        with self.writer() as draft:
            draft.write_bytes(content)

    def upload(self, file: Path) -> None:
        """Become a copy of a local file, whole or not at all."""
        with self.writer() as draft:
            shutil.copyfile(file, draft)

    def download(self, file: Path) -> None:
        """Copy this file to a local one, some megabytes at a time."""
        with self.reader() as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, length=COPIED_BYTES)

    def create_bytes(self, content: bytes) -> None:
        """Write a small file that must not be there yet; FileExistsError when it is.

        S3: a conditional put, which AWS, MinIO and most others know.
        """
        with explained(self):
            if not self.is_local:
                self._create_remotely(content)
                return
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            draft = Path(self.path).with_name(f".{Path(self.path).name}.partial-{uuid4().hex[:8]}")
            try:
                draft.write_bytes(content)
                _link(draft, Path(self.path))
            finally:
                draft.unlink(missing_ok=True)

    def _create_remotely(self, content: bytes) -> None:
        try:
            self.filesystem.pipe_file(self.path, content, mode="create")
        except OSError as error:
            answer = getattr(error.__cause__, "response", {}).get("Error", {})
            if answer.get("Code") in ALREADY_THERE:
                raise FileExistsError(f"{self}: is there already") from error
            raise

    def delete_below(self, names: Iterable[str]) -> None:
        """Delete files under relative names, several at a time."""
        with ThreadPoolExecutor(DELETED_AT_ONCE) as pool:
            for _ in pool.map(Location.delete, map(self.child, names)):
                pass

    def delete(self) -> None:
        """Delete a file; one that is gone already is no error."""
        with explained(self), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path)


def _link(draft: Path, final: Path) -> None:
    """Give a draft its name, where nothing has it yet."""
    try:
        os.link(draft, final)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with final.open("xb") as target:
            target.write(draft.read_bytes())


@contextlib.contextmanager
def explained(place: Location) -> Iterator[None]:
    """What the store answered, as one line that names the place."""
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        missing = "" if place.is_local else " (no such bucket or key)"
        raise FileNotFoundError(f"{place}: not found{missing}") from error
    except (PermissionError, NoCredentialsError) as error:
        remedy = "check its permissions" if place.is_local else "check the AWS_* environment"
        raise PermissionError(f"{place}: access refused ({_line(error)}): {remedy}") from error
    except (ClientError, BotoCoreError, HttpError) as error:
        raise ConnectionError(f"{place}: {_line(error)}") from error
    except OSError as error:
        if place.is_local:
            raise
        raise ConnectionError(f"{place}: {_line(error)}") from error


def _begins_behind_the_end(error: OSError) -> bool:
    """Whether a store refused a range for this reason; local files just give nothing."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("InvalidRange", "416")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
