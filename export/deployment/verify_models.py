"""In the pod, before Triton: see that the models are the very files that the manifests were printed for.

Run by `python3 -c`, with the standard library alone: SOURCE VERSION HASHES PLACE -- COMMAND... It links the models into
PLACE, where nothing else lies, and becomes the command.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path


def file_hashes(root: Path, version: str, models: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of every file by which this version of the models is served, by its path."""
    found = {}
    for path in (path for model in sorted(models) for path in sorted((root / model).rglob("*")) if path.is_file()):
        name = path.relative_to(root)
        if not name.parts[1].isdecimal() or name.parts[1] == version:
            found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main(words: list[str]) -> None:
    """Check, link, become the server; exit code 1 and a line on stderr where the files are others."""
    end = words.index("--")
    source, version, hashes, place = words[:end]
    expected = json.loads(hashes)
    models = {path.split("/")[0] for path in expected}
    found = file_hashes(Path(source), version, models)
    if wrong := sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path)):
        sys.exit(
            f"{source} does not hold what the manifests were printed for: {', '.join(wrong[:3])} (of {len(wrong)}); "
            "put the repository back, or print the manifests again"
        )
    Path(place).mkdir(exist_ok=True)
    for model in models:
        if not (link := Path(place, model)).is_symlink():  # it is there when the container was restarted
            link.symlink_to(Path(source, model))
    os.execvp(words[end + 1], words[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
