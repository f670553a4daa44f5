"""A small real RTSP server: an endless MPEG-TS film, interleaved in the RTSP connection (RFC 2326 section 10.12).

RTP carries whole transport-stream packets with payload type 33 (RFC 2250). The film plays at its own timestamps.
"""

from __future__ import annotations

import io
import itertools
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

TS_PACKET_BYTES = 188
TS_PACKETS_A_MESSAGE = 7  # 1,316 bytes, as every sender does it
CLOCK_HZ = 90_000
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=film\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"


class _Muxed(io.RawIOBase):
    """Where PyAV writes its transport stream; `taken` returns what has come since the last time."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        self._parts.append(bytes(content))
        return len(content)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def transport_stream(images: list[NDArray[np.uint8]], fps: int) -> Iterator[bytes]:
    """Encode RGB images over and over; yield the transport-stream packets of one image at a time."""
    sink = _Muxed()
    with av.open(sink, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"tune": "zerolatency", "preset": "ultrafast", "g": "10"}
        )
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(itertools.cycle(images)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
            yield sink.taken()


class _Connection(socketserver.StreamRequestHandler):
    server: RtspServer

    def handle(self) -> None:
        self.server.connections.append(self.connection)
        self._stopped = threading.Event()
        player: threading.Thread | None = None
        try:
            while (request := self._request()) is not None:
                method, url, headers = request
                self._answer(method, url, headers["cseq"])
                if method == "PLAY" and player is None:
                    player = threading.Thread(target=self._play)
                    player.start()
        except OSError:
            pass  # the client has gone or `drop` has cut the connection
        finally:
            self._stopped.set()
            if player is not None:
                player.join()

    def _request(self) -> tuple[str, str, dict[str, str]] | None:
        """Read a request; the client's own interleaved packets ($, channel, length) are skipped."""
        while (first := self.rfile.read(1)) == b"$":
            _, length = struct.unpack(">BH", self.rfile.read(3))
            self.rfile.read(length)
        if not first:
            return None
        method, url, _ = (first + self.rfile.readline()).decode().split()
        lines = iter(lambda: self.rfile.readline().decode().strip(), "")
        return method, url, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def _answer(self, method: str, url: str, number: str) -> None:
        body = SDP if method == "DESCRIBE" else ""
        extra = {
            "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
            "DESCRIBE": f"Content-Base: {url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n",
            "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
        }.get(method, "Session: 1\r\n")
        self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{extra}\r\n{body}".encode())

    def _play(self) -> None:
        began_s = time.monotonic()
        sequence = itertools.count()
        try:
            for number, packets in enumerate(transport_stream(self.server.images, self.server.fps)):
                if self._stopped.wait(max(0.0, began_s + number / self.server.fps - time.monotonic())):
                    return
                size = TS_PACKET_BYTES * TS_PACKETS_A_MESSAGE
                for start in range(0, len(packets), size):
                    self._send(packets[start : start + size], next(sequence), number * CLOCK_HZ // self.server.fps)
        except OSError:
            return

    def _send(self, payload: bytes, sequence: int, timestamp: int) -> None:
        header = struct.pack(">BBHII", 0x80, 33, sequence % 2**16, timestamp % 2**32, 1)
        self.wfile.write(struct.pack(">cBH", b"$", 0, len(header) + len(payload)) + header + payload)


class RtspServer(socketserver.ThreadingTCPServer):
    """Plays images as rtsp://127.0.0.1:PORT/film to whoever asks; use it as a context manager."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, images: list[NDArray[np.uint8]], *, fps: int = 30, port: int = 0) -> None:
        self.images = images
        self.fps = fps
        self.connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", port), _Connection)
        self.port = int(self.server_address[1])
        self.url = f"rtsp://127.0.0.1:{self.port}/film"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def __enter__(self) -> RtspServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.drop()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def drop(self) -> None:
        """Cut all connections, as a network that fails."""
        while self.connections:
            connection = self.connections.pop()
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it was closed already
