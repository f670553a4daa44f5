"""Where a repository goes, and how it gets there so that a server watching the place never sees half a model.

A fresh repository on a local disk takes its place by one rename. A new version beside others comes in this order: the
version folders, each whole, which the configurations do not name yet; the configurations; the manifest. An object store
has no rename and the same order does: what is being written is not named by anything that is read, and a repository
without a manifest is not one. What is named, an object store cannot replace, so that is refused.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from affserve.export.contract import MANIFEST_FILE, MODELS
from affserve.export.repository.manifest import EXPORT_COMMAND, Manifest
from affserve.train.errors import AffserveError, ExportError, OutputError, RepositoryError
from affserve.train.files import replace_folder, write_file

STORES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "huggingface_hub")  # whose libraries have errors of their own
LOCAL_SCHEMES = ("file://", "local://")


def open_target(text: str) -> Target:
    """Return the place that a path or an fsspec URL (s3://..., gs://..., memory://...) names."""
    for scheme in LOCAL_SCHEMES:
        text = text.removeprefix(scheme)
    if "://" not in text:
        return LocalTarget(Path(text))
    try:
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(text)
    except (ImportError, ValueError) as error:  # fsspec names the driver that is missing
        raise ExportError(
            f"{text} cannot be opened: {error}; expected a path or a URL such as s3://bucket/folder"
        ) from error
    return RemoteTarget(fs, str(root).rstrip("/"), text)


def refuse_foreign(target: Target) -> None:
    """ExportError when something is there that affserve did not write."""
    if target.size(MANIFEST_FILE) is None and target.occupied():
        raise ExportError(
            f"{target.name} exists and is not a repository written by affserve (no {MANIFEST_FILE}); choose another "
            "folder"
        )


def read_target_manifest(target: Target) -> Manifest | None:
    """Return the manifest of the repository at a place; None when there is nothing, ExportError for anything else."""
    content = target.read(MANIFEST_FILE)
    if content is not None:
        return Manifest.from_json(content, f"{target.name}/{MANIFEST_FILE}")
    refuse_foreign(target)
    return None


def require_manifest(target: Target) -> Manifest:
    """Return the manifest of the repository at a place; RepositoryError when there is none."""
    manifest = read_target_manifest(target)
    if manifest is None:
        raise RepositoryError(f"{target.name} holds no repository; write one with: {EXPORT_COMMAND} ...")
    return manifest


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Make an OutputError of an operating system's error, or of what libraries of stores raise in its place."""
    try:
        yield
    except AffserveError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(STORES):
            raise
        raise OutputError(f"{what}: {getattr(error, 'strerror', None) or error}; {remedy}") from error


@dataclass(frozen=True)
class LocalTarget:
    """A folder on a disk of this machine."""

    root: Path

    @property
    def name(self) -> str:
        """The path, for messages."""
        return str(self.root)

    def read(self, file: str) -> bytes | None:
        """Return a file's content; None when there is no such file."""
        path = self.root / file
        return path.read_bytes() if path.is_file() else None

    def size(self, file: str) -> int | None:
        """Return a file's size in bytes; None when there is no such file."""
        path = self.root / file
        return path.stat().st_size if path.is_file() else None

    def occupied(self) -> bool:
        """Say whether anything is there."""
        return self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir()))

    def check_free(self, present: Manifest | None, version: int | None) -> None:
        """Nothing is in the way: a disk can exchange two folders."""

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield an empty folder beside the root: on the same disk, and outside what a server watches."""
        with self._explained():
            self.root.absolute().parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{self.root.name}.", dir=self.root.absolute().parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def place_whole(self, staging: Path) -> None:
        """Make the staged repository the one that is there, in place of any other."""
        with self._explained():
            staging.chmod(0o755)  # mkdtemp's 0700 would lock out a server of another user
            replace_folder(staging, self.root)

    def place_version(self, staging: Path, version: int) -> None:
        """Add one staged version (or replace it), then the staged configurations and manifest."""
        with self._explained():
            for model in MODELS:
                if (made := staging / model / str(version)).is_dir():  # not every head streams
                    (self.root / model).mkdir(parents=True, exist_ok=True)
                    replace_folder(made, self.root / model / str(version))
        self.write({file: (staging / file).read_bytes() for file in in_order(staging) if version_of(file) is None})

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write small files, each whole, in this order."""
        with self._explained():
            for file, content in files.items():
                (self.root / file).parent.mkdir(parents=True, exist_ok=True)
                write_file(self.root / file, content)

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained(
            f"{self.root} cannot be written",
            "expected a folder in which, and beside which, this user may write on the same disk (a mount point itself "
            "is none: name a folder below it)",
        )


@dataclass(frozen=True)
class RemoteTarget:
    """A folder of an object store, or of anything else that fsspec reaches."""

    fs: Any  # fsspec.AbstractFileSystem
    root: str  # as `fs` names it
    url: str

    @property
    def name(self) -> str:
        return self.url

    def read(self, file: str) -> bytes | None:
        with self._explained():
            self.fs.invalidate_cache()
            path = f"{self.root}/{file}"
            return bytes(self.fs.cat_file(path)) if self.fs.exists(path) else None

    def size(self, file: str) -> int | None:
        with self._explained():
            path = f"{self.root}/{file}"
            return int(self.fs.size(path)) if self.fs.exists(path) else None

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file by its path below the root."""
        with self._explained():
            found = self.fs.find(self.root, detail=True)
        return {path.removeprefix(f"{self.root}/"): int(about["size"]) for path, about in found.items()}

    def fetch(self, file: str, place: Path) -> None:
        """Copy a file to a place on this machine."""
        with self._explained():
            self.fs.get_file(f"{self.root}/{file}", str(place))

    def occupied(self) -> bool:
        with self._explained():
            return bool(self.fs.exists(self.root) and self.fs.find(self.root))

    def check_free(self, present: Manifest | None, version: int | None) -> None:
        """ExportError for what would be overwritten while it is served: an object store has no exchange in one step."""
        if version is None and self.occupied():
            raise ExportError(
                f"{self.url} holds a repository, and an object store cannot exchange one in a single step: add a "
                "version to it with --version N, or export to another URL"
            )
        if present is not None and version == present.served:
            raise ExportError(
                f"{self.url} serves version {version}, and an object store cannot exchange files while they are "
                "served: choose another --version"
            )

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="affserve-export-") as folder:
            yield Path(folder)

    def place_whole(self, staging: Path) -> None:
        self._upload(staging)

    def place_version(self, staging: Path, version: int) -> None:
        with self._explained():
            for model in MODELS:  # what an earlier export of this version left must not stay beside the new files
                if self.fs.exists(old := f"{self.root}/{model}/{version}"):
                    self.fs.rm(old, recursive=True)
        self._upload(staging)

    def write(self, files: Mapping[str, bytes]) -> None:
        with self._explained():
            for file, content in files.items():
                self.fs.makedirs(str(PurePosixPath(self.root, file).parent), exist_ok=True)
                self.fs.pipe_file(f"{self.root}/{file}", content)

    def _upload(self, staging: Path) -> None:
        with self._explained():
            for file in in_order(staging):
                place = f"{self.root}/{file}"
                self.fs.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
                self.fs.put_file(str(staging / file), place)
                arrived, sent = self.size(file), (staging / file).stat().st_size
                if arrived != sent:
                    raise OutputError(f"{self.url}/{file} has {arrived} bytes after the upload of {sent}; export again")

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained(f"{self.url} cannot be read or written", "check the address and who may read or write there")


Target = LocalTarget | RemoteTarget
"""A place for one repository; what a method does is said once, of a folder."""


def in_order(staging: Path) -> list[str]:
    """Return the staged files in the order in which a watching server may see them: versions, configs, manifest."""
    files = [path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()]
    return sorted(files, key=lambda file: (file == MANIFEST_FILE, version_of(file) is None, file))


def version_of(file: str) -> int | None:
    """Return the version whose folder holds a file; None for configurations and the manifest."""
    parts = PurePosixPath(file).parts
    return int(parts[1]) if len(parts) > 2 and parts[1].isdecimal() else None
