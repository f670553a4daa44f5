"""Decoded pictures of any pixel format as upright RGB of 8 bits."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter
from numpy.typing import NDArray

HDR_CURVES = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)


class Pixels:
    """Converts the frames of one stream; keeps the tables that swscale makes for it."""

    def __init__(self) -> None:
        self._to_standard = VideoReformatter()

    def upright_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Convert a frame to (H, W, 3) uint8 RGB and undo the rotation that the container asks for.

        High dynamic range (PQ, HLG) is mapped to what a standard screen shows: read as it stands, it is grey and flat.
        """
        quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 counts
        if frame.color_trc in HDR_CURVES:
            frame = self._to_standard.reformat(
                frame, format="rgb24", dst_color_trc=ColorTrc.IEC61966_2_1, dst_color_primaries=ColorPrimaries.BT709
            )
        image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
        return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image
