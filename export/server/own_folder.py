"""Temporary folders that only their user may look into, and that a later start removes when their owner has died.

A folder belongs to whoever holds the lock on its file `owner`. The kernel takes the lock away when the last process
that has the file open ends, however it ends; a process id would not do, since it is soon given to somebody else and
means nothing on another machine that shares the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from affserve.export.server.guardian import remove_shared_memory

OWNER_FILE, NOTE_FILE = "owner", "note.json"
_PLAIN = re.compile(r"[\w@%+=:,./-]+")  # a path that a shell takes as it is
_NAME = re.compile(r"(affserve-[0-9a-f]{16})-\w+")


class OwnFolder:
    """A new temporary folder; OSError where there is no room for it.

    identity: the first part of its name, by which shared memory that belongs to it begins, too.
    lock: a file descriptor; who inherits it is an owner as well.
    """

    def __init__(self, identity: str | None = None) -> None:
        self.identity = identity or f"affserve-{secrets.token_hex(8)}"
        self.path = Path(tempfile.mkdtemp(prefix=f"{self.identity}-", dir=_place()))
        try:
            unlocked = self.path / f"{OWNER_FILE}.new"
            self.lock = os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            unlocked.rename(self.path / OWNER_FILE)  # never seen without its lock
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _place() -> str:
    """Return where our folders go: Triton starts its Python processes through a shell and quotes no path."""
    asked = tempfile.gettempdir()
    if _PLAIN.fullmatch(asked):
        return asked
    return next((one for one in ("/tmp", "/var/tmp", "/dev/shm") if os.access(one, os.W_OK | os.X_OK)), asked)


def own_folders() -> Iterator[Path]:
    """Yield the folders of this user's servers, dead ones included."""
    with contextlib.suppress(OSError), os.scandir(_place()) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                ours = _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                if ours and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    yield Path(entry.path)


def remove_orphans() -> None:
    """Remove folders and shared memory of servers whose owners, supervisor and guardian, were killed together."""
    for folder in own_folders():
        if _is_orphan(folder):
            remove_shared_memory(folder.name.rpartition("-")[0])
            shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(folder: Path) -> bool:
    """Say whether nobody owns a folder any more; one that cannot be asked is not ours to remove."""
    try:
        owner = os.open(folder / OWNER_FILE, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(owner)
    return True


def write_note(folder: Path, facts: Mapping[str, object] | None) -> None:
    """Leave facts in a folder for whoever looks; None takes them away. A full disk leaves what was there or nothing."""
    with contextlib.suppress(OSError):
        if facts is None:
            (folder / NOTE_FILE).unlink(missing_ok=True)
        else:
            (folder / NOTE_FILE).write_text(json.dumps(facts))


def notes() -> Iterator[dict[str, Any]]:
    """Yield the notes of this user's servers that live."""
    for folder in own_folders():
        with contextlib.suppress(OSError, ValueError):
            if not _is_orphan(folder) and isinstance(note := json.loads((folder / NOTE_FILE).read_text()), dict):
                yield note
