"""Where checkpoints are stored: a folder, or a prefix of an object store; a generation appears atomically.

Folder: files are written under `.tmp-step-STEP-TOKEN`, made durable, and renamed to `step-STEP` after the manifest.
Object store: files are written under `step-STEP-TOKEN/`, a prefix of their own, and the manifest object comes last.
STEP has eight digits, so that names sort. Anything without a valid manifest is not read.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, TypeVar, cast

from pyarrow import fs

from model.files.atomic import replacing, sync
from pipeline.checkpoint.manifest import MANIFEST_NAME
from pipeline.run_folder.files import ask_server
from pipeline.shards.storage import open_remote, stat_shard
from pipeline.storage.locations import locate
from pipeline.storage.retries import with_retries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GENERATION = re.compile(r"step-(\d{8})(-.+)?")
_TEMPORARY = ".tmp-"
_REMOVED = ".removed-"
_REQUEST_TRIES = 3  # of the parts of an upload, before the upload begins again
_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class Generation(NamedTuple):
    """A committed checkpoint; its bytes are not verified yet."""

    step: int
    name: str


class CheckpointStorage(Protocol):
    """Writes, lists, reads and removes generations. File names hold no folders."""

    location: str
    """What messages call it."""

    def begin(self, step: int, token: str) -> str:
        """Make room for a generation; returns the place for its files, the same for equal arguments."""
        ...

    def write(self, place: str, name: str, writer: Callable[[BinaryIO], _T]) -> _T:
        """Let `writer` fill a new file, which is durable afterwards; it is called again after a failure."""
        ...

    def create(self, place: str, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a new file, which is durable once the block ends; a failure of the storage is not tried again."""
        ...

    def exists(self, place: str, name: str) -> bool:
        """Tell whether a file was completed."""
        ...

    def commit(self, place: str, step: int) -> str:
        """Turn a place, manifest included, into a generation; returns its name."""
        ...

    def discard(self, place: str) -> None:
        """Remove the files of an uncommitted generation, or leave them to `sweep`; does not raise."""
        ...

    def generations(self) -> list[Generation]:
        """Return all generations, oldest first."""
        ...

    def open(self, place: str, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file of a generation or place for reading.

        Raises:
            OSError: it is missing or cannot be read.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a generation, in such an order that a partly removed one does not count as a generation."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers left behind; only for the holder of the run."""
        ...


def open_storage(location: str | Path) -> FolderStorage | ObjectStorage:
    """Return the storage at a local folder or an `s3://`/`gs://` URL.

    Raises:
        ValueError: another scheme.
    """
    text = str(location)
    if text.startswith(("s3://", "gs://")):
        return ObjectStorage(text)
    if "://" in text:
        raise ValueError(f"checkpoint folder {text}: expected a local path, s3:// or gs://")
    return FolderStorage(Path(text))


class FolderStorage:
    """Generations as folders of a POSIX file system."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder)

    def begin(self, step: int, token: str) -> str:
        """Create the temporary folder."""
        name = f"{_TEMPORARY}step-{step:08d}-{token}"
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return name

    def write(self, place: str, name: str, writer: Callable[[BinaryIO], _T]) -> _T:
        """Write a file, once: a full disk stays full."""
        with self.create(place, name) as file:
            return writer(file)

    @contextmanager
    def create(self, place: str, name: str) -> Iterator[BinaryIO]:
        """Write under another name first, so that a file with its name is complete."""
        with replacing(self.folder / place / name) as temporary, temporary.open("wb") as file:
            yield cast(BinaryIO, file)

    def exists(self, place: str, name: str) -> bool:
        """Tell whether a file was completed."""
        ask_server(self.folder / place)
        return (self.folder / place / name).is_file()

    def commit(self, place: str, step: int) -> str:
        """Rename the temporary folder; a folder of the same step, defective or computed again, makes way."""
        sync(self.folder / place)
        target = self.folder / f"step-{step:08d}"
        if target.exists():
            self.remove(target.name)
        (self.folder / place).rename(target)
        sync(self.folder)
        return target.name

    def discard(self, place: str) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self.folder / place, ignore_errors=True)

    def generations(self) -> list[Generation]:
        """Return the folders whose names are those of generations."""
        names = [path.name for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        return sorted(Generation(int(match[1]), name) for name in names if (match := _GENERATION.fullmatch(name)))

    def open(self, place: str, name: str) -> BinaryIO:
        """Open a file."""
        return (self.folder / place / name).open("rb")

    def remove(self, name: str) -> None:
        """Take the name away first, then the content."""
        doomed = self.folder / f"{_REMOVED}{name}-{os.getpid()}"
        (self.folder / name).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self) -> None:
        """Remove temporary and half removed folders."""
        for prefix in (_TEMPORARY, _REMOVED):
            for path in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(path, ignore_errors=True)


class ObjectStorage:
    """Generations as prefixes of an object store, through pyarrow."""

    def __init__(self, url: str) -> None:
        """Use a prefix that belongs to this run alone.

        Args:
            url: `s3://bucket/prefix` or `gs://bucket/prefix`; a query holds options such as `endpoint_override`.
        """
        self.location, separator, query = url.partition("?")
        self._query = separator + query
        self._filesystem, path = locate(url, "checkpoint folder", _REQUEST_TRIES)
        self._root = path.rstrip("/")

    def begin(self, step: int, token: str) -> str:
        """Name the prefix; it exists with its first object."""
        return f"step-{step:08d}-{token}"

    def write(self, place: str, name: str, writer: Callable[[BinaryIO], _T]) -> _T:
        """Upload an object; after a storage failure, from its start."""

        def upload() -> _T:
            with self.create(place, name) as stream:
                return writer(stream)

        return self._ask(upload, place, name, is_timed=False)

    @contextmanager
    def create(self, place: str, name: str) -> Iterator[BinaryIO]:
        """Upload an object; it exists once the block ends."""
        stream = self._filesystem.open_output_stream(self._path(place, name))
        try:
            yield cast(BinaryIO, stream)
        except BaseException:
            with suppress(OSError):  # closing sends what is left, which must not hide why the block failed
                stream.close()
            raise
        stream.close()

    def exists(self, place: str, name: str) -> bool:
        """Tell whether an object exists."""
        info = self._ask(lambda: self._filesystem.get_file_info(self._path(place, name)), place, name)
        return bool(info.type == fs.FileType.File)

    def commit(self, place: str, step: int) -> str:
        """Do nothing: the manifest is there, and it was the last object."""
        del step
        return place

    def discard(self, place: str) -> None:
        """Remove the objects, if there are any."""
        try:
            self._filesystem.delete_dir(self._path(place))
        except FileNotFoundError:
            pass  # not even the first object was written
        except OSError as error:
            logger.warning("%s/%s was left behind, the next start removes it: %s", self.location, place, error)

    def generations(self) -> list[Generation]:
        """Return the prefixes that hold a manifest."""
        names = [path.rsplit("/", 2)[-2] for path in self._objects() if path.endswith(f"/{MANIFEST_NAME}")]
        return sorted(Generation(int(match[1]), name) for name in names if (match := _GENERATION.fullmatch(name)))

    def open(self, place: str, name: str) -> BinaryIO:
        """Open an object, which is read in ranges that are asked for again where storage fails."""
        url = f"{self._url(place, name)}{self._query}"
        try:
            size_bytes = stat_shard(url).size_bytes
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._url(place, name)}: no such object") from None
        return open_remote(url, size_bytes)

    def remove(self, name: str) -> None:
        """Take the manifest away first, then the rest."""
        with suppress(FileNotFoundError):  # a try before this one, whose answer was lost, may have removed it
            self._ask(lambda: self._filesystem.delete_file(self._path(name, MANIFEST_NAME)), name)
        self._delete(name)

    def sweep(self) -> None:
        """Remove prefixes without a manifest."""
        prefixes = {path.removeprefix(f"{self._root}/").partition("/")[0] for path in self._objects()}
        for name in prefixes - {generation.name for generation in self.generations()}:
            if _GENERATION.fullmatch(name):
                self._delete(name)

    def _objects(self) -> list[str]:
        selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        infos = self._ask(lambda: self._filesystem.get_file_info(selector))
        return [info.path for info in infos if info.type == fs.FileType.File]

    def _delete(self, place: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(lambda: self._filesystem.delete_dir(self._path(place)), place)

    def _ask(self, request: Callable[[], _T], *parts: str, is_timed: bool = True) -> _T:
        def list_one() -> object:
            return self._filesystem.get_file_info(fs.FileSelector(self._root, allow_not_found=True))

        return with_retries(request, f"checkpoint {self._url(*parts)}", is_timed=is_timed, ask=list_one)

    def _url(self, *parts: str) -> str:
        return "/".join((self.location.rstrip("/"), *parts))

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))
