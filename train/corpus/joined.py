"""Several corpora as one: expressions of here, action units of there, each weighed as wanted.

A video is called `<corpus>~<video>` where there are several; nothing is copied. A corpus that weighs 3 has its frames
drawn three times as often as their number would have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affserve.train.corpus.affwild2 import PHOTOGRAPHS, Corpus
from affserve.train.errors import DataError

MARK = "~"  # between the names of corpus and video


def join_corpora(corpora: Sequence[Corpus], weights: Sequence[float] = ()) -> Corpus:
    """Return several corpora as one, or the only one as it is; DataError where weights do not fit."""
    if weights and (len(weights) != len(corpora) or min(weights) <= 0):
        raise DataError(f"found {len(weights)} weights for {len(corpora)} corpora; expected one each, above 0")
    if len(corpora) == 1:
        return corpora[0]
    if len({one.root.resolve() for one in corpora}) < len(corpora):
        raise DataError(f"{', '.join(str(one.root) for one in corpora)}: a corpus is named twice")
    files: dict[tuple[str, str], dict[str, Path]] = {}
    called = _names(corpora)
    for name, one in zip(called, corpora, strict=True):
        for key, held in one.annotation_files.items():
            files.setdefault(key, {}).update({f"{name}{MARK}{video}": path for video, path in held.items()})
    by_name = list(zip(called, corpora, weights or [1.0] * len(corpora), strict=True))
    return Corpus(
        root=corpora[0].root,
        name=" + ".join(one.name for one in corpora),
        annotation_files=files,
        crop_folders={
            f"{name}{MARK}{v}": folders for name, one, _ in by_name for v, folders in one.crop_folders.items()
        },
        images=" + ".join(sorted({one.images for one in corpora})),
        kind=PHOTOGRAPHS if any(one.kind == PHOTOGRAPHS for one in corpora) else corpora[0].kind,
        people={
            f"{name}{MARK}{v}": f"{name}{MARK}{one.person(v)}" for name, one, _ in by_name for v in one.crop_folders
        },
        weights={f"{name}{MARK}{v}": weight for name, one, weight in by_name for v in one.crop_folders},
        sources=tuple(one.image_source() for one in corpora),
    )


def _names(corpora: Sequence[Corpus]) -> list[str]:
    """Return a name for each corpus: its folder's, with a number where two are called alike."""
    folders = [one.root.resolve().name for one in corpora]
    return [name if folders.count(name) == 1 else f"{name}{k}" for k, name in enumerate(folders, start=1)]
