"""The trailing window of one person: the last features that the temporal head may look back on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from affserve.export.contract import FEATURE_WIDTH
from affserve.train.windows import WINDOW_FRAMES


class LiveWindow:
    """A ring of at most `room` features, one per frame number.

    A frame number without a feature (no face, or dropped) repeats the feature before it, as in training. Where a gap is
    as long as the window, nothing but repetitions would be left: the window starts anew.
    """

    def __init__(self, room: int = WINDOW_FRAMES) -> None:
        if room < 1:
            raise ValueError(f"room of a window is {room} frames, expected 1 or more")
        self._ring = np.zeros((room, FEATURE_WIDTH), dtype=np.float32)
        self._room = room
        self._length = 0
        self._end = 0  # where the next feature goes
        self.newest = -1  # frame number of the last feature

    def __len__(self) -> int:
        return self._length

    def push(self, frame: int, feature: NDArray[np.float32]) -> None:
        """Take the feature (512,) of a frame; frames come in ascending order, with or without gaps."""
        if frame <= self.newest:
            raise ValueError(f"frame {frame} comes after frame {self.newest}, expected ascending numbers")
        if self._length and self.is_over_at(frame):
            self._length = 0
        steps = frame - self.newest if self._length else 1
        places = (self._end + np.arange(steps)) % self._room
        self._ring[places] = self._ring[self._end - 1]  # its last place is overwritten by the next line
        self._ring[places[-1]] = feature
        self._end = (self._end + steps) % self._room
        self._length = min(self._length + steps, self._room)
        self.newest = frame

    def is_over_at(self, frame: int) -> bool:
        """Say whether a feature at this frame number would start the window anew."""
        return frame - self.newest >= self._room

    def features(self) -> NDArray[np.float32]:
        """Return the window (T, 512), oldest first, T <= room."""
        window: NDArray[np.float32] = self._ring[(self._end - self._length + np.arange(self._length)) % self._room]
        return window

    def position_of(self, frame: int) -> int:
        """Return the row of a frame number in `features()`."""
        position = self._length - 1 - (self.newest - frame)
        if not 0 <= position < self._length:
            first = self.newest - self._length + 1
            raise ValueError(f"frame {frame} is not in the window, which holds {first} to {self.newest}")
        return position
