"""What the user may choose about faces, without loading OpenCV."""

from __future__ import annotations

from dataclasses import dataclass

from affserve.train.errors import VideoError

LARGEST, ALL, LEFT, RIGHT = "largest", "all", "left", "right"
FACE_CHOICES = (LARGEST, ALL, LEFT, RIGHT)
WIDTH_PX = 480


@dataclass(frozen=True, kw_only=True)
class FaceSettings:
    """Whose face is analysed, and how faces are found and followed."""

    faces: str = LARGEST  # one subject a frame: the largest face, or the left or right one of two; or all of them
    detect_every: int = 5  # frames from one search of the whole frame to the next; faces are followed in between
    min_size_px: float = 20.0  # pixels of the frame: smaller faces (the lesser side of their box) are left out
    smoothing: float = 0.5  # share of the box before that stays in the reported box, 0 (none) to below 1
    width_px: int = WIDTH_PX  # longer side at which a frame is searched: more shows smaller faces and takes longer
    max_faces: int = 16  # people followed at the same time
    patience_frames: int = 90  # a person who has been out of sight for longer than this gets a new track_id

    def __post_init__(self) -> None:
        checks = (
            ("faces", self.faces, self.faces in FACE_CHOICES, f"one of {', '.join(FACE_CHOICES)}"),
            ("detect_every", self.detect_every, self.detect_every >= 1, "1 frame or more"),
            ("min_size_px", self.min_size_px, self.min_size_px >= 0, "0 pixels or more"),
            ("smoothing", self.smoothing, 0 <= self.smoothing < 1, "0 or more and below 1"),
            ("width_px", self.width_px, self.width_px >= 64, "64 pixels or more"),
            ("max_faces", self.max_faces, self.max_faces >= 1, "1 or more"),
            ("patience_frames", self.patience_frames, self.patience_frames >= 1, "1 frame or more"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise VideoError(f"face setting {name} is {value}, expected {expected}")
