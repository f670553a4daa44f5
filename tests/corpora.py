"""Tiny corpora written by hand, for rules about names and folders."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_annotation(root: Path, challenge: str, part: str, video: str, text: str) -> None:
    path = root / "annotations" / challenge / part / f"{video}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_crops(folder: Path, numbers: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), np.full((112, 112, 3), number % 256, np.uint8))
