"""Scenes with several generated people, for tests of the tracker: who is where in each frame is decided by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.synthetic.anatomy import FaceState, Placement
from affserve.train.synthetic.face import draw_face
from affserve.train.synthetic.light import Lighting
from affserve.train.synthetic.motion import draw_motion
from affserve.train.synthetic.plan import Difficulty
from affserve.train.synthetic.scene import draw_performance, draw_person

Where = Callable[[int], tuple[float, float] | None]
"""Frame number to the middle between the eyes, x and y px; None: not in the picture."""

SIZE_PX = (270, 480)  # height, width


class Actor:
    """One generated person who moves through a scene; `scale_px` is about half the width of the face."""

    def __init__(self, number: int, where: Where, *, frames: int, scale_px: float = 30.0) -> None:
        self._identity = draw_person(7, number, 1.0)
        self._motion = draw_motion(np.random.default_rng([7, number]), frames, 30.0, pose_amplitude=0.1)
        self.where = where
        self._scale_px = scale_px

    def draw(self, image: NDArray[np.uint8], frame: int) -> None:
        """Draw the person into an image (H, W, 3)."""
        place = self.where(frame)
        if place is not None:
            placement = Placement(centre_px=place, scale_px=self._scale_px)
            draw_face(image, self._identity, FaceState.at(self._motion, frame), placement, Lighting())


def scene(
    actors: list[Actor],
    frames: int,
    *,
    background: int = 0,
    board: Callable[[int], tuple[int, int] | None] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames; later actors stand in front. board: frame to the x range (px) that a grey board hides."""
    rng = np.random.default_rng([8, background])
    person = draw_person(8, background, 1.0)
    empty = draw_performance(rng, person, frames=30, fps=30.0, difficulty=Difficulty(), size=SIZE_PX)._background
    noise = np.random.default_rng(9)
    for frame in range(frames):
        image = empty.copy()
        for actor in actors:
            actor.draw(image, frame)
        hidden = board(frame) if board else None
        if hidden is not None:
            cv2.rectangle(image, (hidden[0], 0), (hidden[1], SIZE_PX[0]), (90, 96, 104), -1)
        grain = noise.integers(-3, 4, SIZE_PX, dtype=np.int16)[..., None]
        yield np.clip(image + grain, 0, 255).astype(np.uint8)
