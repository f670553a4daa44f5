"""A repository at an address in, a verified copy on this machine out.

A copy is kept under the hash of its manifest, so what is there is whole, is never changed, and is fetched once. Files
are compared with the manifest as they come. An interrupted fetch goes on; of two processes one waits for the other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from affserve.export.contract import MANIFEST_FILE
from affserve.export.repository.manifest import Manifest
from affserve.export.repository.placement import RemoteTarget, open_target, version_of
from affserve.train.errors import RepositoryError
from affserve.train.files import file_sha256, sole_user

CACHE_ENVIRONMENT = "XDG_CACHE_HOME"


def local_repository(place: str | Path, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of a repository: a path as it is, for an address (s3://..., hf://...) a copy in the cache.

    tell: is told what is fetched. RepositoryError where there is none, or one whose files are not what its manifest
    says; OutputError where it cannot be reached.
    """
    if isinstance(place, Path) or not isinstance(target := open_target(place), RemoteTarget):
        return Path(place)
    content = target.read(MANIFEST_FILE)
    if content is None:
        raise RepositoryError(f"{place} holds no {MANIFEST_FILE}: expected the address of a repository of affserve")
    manifest = Manifest.from_json(content, f"{place}/{MANIFEST_FILE}")
    folder = _cache() / _digest(place.encode())
    kept = folder / _digest(content)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_user(folder, wait=True):
        if not kept.is_dir():
            part = folder / f"{kept.name}.part"
            for other in set(folder.glob("*.part")) - {part}:  # of a repository that was replaced meanwhile
                shutil.rmtree(other)
            _fetch(target, manifest, part, tell)
            (part / MANIFEST_FILE).write_bytes(content)
            part.rename(kept)
    return kept


def _cache() -> Path:
    return Path(os.environ.get(CACHE_ENVIRONMENT) or Path.home() / ".cache") / "affserve" / "repositories"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _fetch(target: RemoteTarget, manifest: Manifest, part: Path, tell: Callable[[str], None]) -> None:
    """Fill a folder with the version that is served, leaving what is there already and right."""
    listed = {**manifest.configs, **manifest.versions[manifest.served].hashes()}
    there = target.sizes()
    wanted = {file: size for file, size in there.items() if version_of(file) in (None, manifest.served)}
    if missing := sorted(listed.keys() - there.keys()):
        raise RepositoryError(f"{target.url} lacks {missing[0]}, which its {MANIFEST_FILE} lists: upload it again")
    for file in wanted:
        if ".." in PurePosixPath(file).parts or file.startswith("/"):
            raise RepositoryError(f"{target.url} holds a file named {file!r}, which would lie outside of a copy")
    tell(f"fetching {target.url}: {sum(wanted.values()) / 1e6:.0f} MB")
    for file, size in wanted.items():
        if file != MANIFEST_FILE and not _is_right(part / file, size, listed.get(file)):
            arriving = part / f"{file}.arriving"
            arriving.parent.mkdir(parents=True, exist_ok=True)
            target.fetch(file, arriving)
            if not _is_right(arriving, size, listed.get(file)):
                raise RepositoryError(
                    f"{target.url}/{file} is not the file that its {MANIFEST_FILE} lists: upload it again"
                )
            arriving.rename(part / file)


def _is_right(path: Path, size: int, sha256: str | None) -> bool:
    return path.is_file() and path.stat().st_size == size and sha256 in (None, file_sha256(path))
