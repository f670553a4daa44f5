"""Carries frames to a server, the best way that is open, and finds another when one closes."""

from __future__ import annotations

import logging

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.wire.calls import Calls
from affserve.client.wire.messages import jpeg_tensor, raw_tensor
from affserve.client.wire.shared_memory import CHUNK_BYTES, Region, RegionPool, abandon, left_behind, remove_stale_files
from affserve.client.wire.transport import Transport
from affserve.export.contract import AFFECT, AFFECT_JPEG, CLIP_ENCODER, CLIP_ENCODER_JPEG, ModelSpec
from affserve.train.errors import InferenceError, ServerError

JPEG_MODEL = {CLIP_ENCODER.name: CLIP_ENCODER_JPEG, AFFECT.name: AFFECT_JPEG}
MOST_REGISTRATIONS = 5  # of regions for one message; each is lost only when the server was restarted in between
GOODBYE_TIMEOUT_S = 2.0
LOST_REGION = "Unable to find shared memory region"

log = logging.getLogger(__name__)


class FrameCarrier:
    """Sends frames to a model that takes them. `transport` says how they travel now."""

    def __init__(self, calls: Calls, *, wanted: Transport, jpeg_quality: int, is_one_server: bool) -> None:
        self.transport = Transport.RAW
        self._calls = calls
        self._wanted = wanted
        self._quality = jpeg_quality
        self._is_one_server = is_one_server
        self._regions = RegionPool()

    @property
    def fidelity(self) -> str:
        """What travelling does to frames: nothing, or JPEG, which changes answers."""
        return f"JPEG of quality {self._quality}" if self.transport is Transport.JPEG else "as they are"

    def choose(self) -> None:
        """Decide how frames travel; ServerError when what was asked for cannot be."""
        if self._wanted is Transport.JPEG:
            self._require_jpeg()
            self.transport = Transport.JPEG
        elif self._wanted is not Transport.RAW:
            problem = self._try_shared_memory()
            if problem is not None and self._wanted is Transport.SHM:
                raise ServerError(
                    f"frames cannot reach {self._calls.url} by shared memory: {problem}; --transport auto uses it "
                    "where it can"
                )

    def carry(self, model: ModelSpec, frames: NDArray[np.uint8], asked: str) -> triton.InferResult:
        """Have `model` answer for frames (N, 224, 224, 3); asked: who is asked what, for messages."""
        if self.transport is Transport.SHM:
            return self._by_shared_memory(model, frames, asked)
        if self.transport is Transport.JPEG:
            return self._calls.infer(JPEG_MODEL[model.name], jpeg_tensor(frames, self._quality), asked)
        return self._calls.infer(model, raw_tensor(model.inputs[0], frames), asked)

    def release(self) -> None:
        """Have the server close the regions; one that a request still reads, the next client has it close."""
        for name in tuple(self._regions.known):
            try:
                self._unregister(name)
            except InferenceServerException as error:
                if error.status() == "StatusCode.UNAVAILABLE":
                    return  # with the server its memory has gone
                abandon(name)
            self._regions.known.discard(name)

    def _require_jpeg(self) -> None:
        url, name = self._calls.url, CLIP_ENCODER_JPEG.name
        asked = f"{name} on {url}, asked whether it is ready"
        if not self._calls.repeated(asked, self._calls.triton.is_model_ready, model_name=name):
            raise ServerError(
                f"the server at {url} does not serve {name}: its repository was exported without the JPEG models; "
                "export it again, or use --transport raw"
            )

    # --- shared memory ---

    def _try_shared_memory(self) -> str | None:
        """Switch to shared memory if the server can open a region of ours; return why not otherwise."""
        if not self._is_one_server:
            return "there are or may be several servers (a name can have many), and a region belongs to one"
        remove_stale_files()
        try:
            region = self._new_region(CHUNK_BYTES)
        except InferenceError as error:
            return str(error)
        except OSError as error:
            return f"/dev/shm has no room or is not there ({error})"
        self._regions.put_back(region)
        self.transport = Transport.SHM
        self._close_what_others_left()
        return None

    def _new_region(self, size_bytes: int) -> Region:
        """Make a region that the server has open and that has no name any more; InferenceError, OSError."""
        # A region has a name while it is being registered. That must not last as long as a restart.
        asked = f"the server at {self._calls.url}"
        self._calls.repeated(asked, self._calls.triton.is_server_live)
        region = Region(max(size_bytes, CHUNK_BYTES))
        try:
            self._calls.repeated(
                f"{asked}, sent shared memory",
                self._calls.triton.register_system_shared_memory,
                name=region.name,
                key=f"/{region.name}",
                byte_size=region.size_bytes,
            )
            self._regions.known.add(region.name)
        finally:
            region.unlink()
        return region

    def _by_shared_memory(self, model: ModelSpec, frames: NDArray[np.uint8], asked: str) -> triton.InferResult:
        region = self._regions.take(frames.nbytes)
        for _ in range(MOST_REGISTRATIONS):
            if region is None:
                region = self._another_region(frames.nbytes)
            if region is None:
                break
            region.write(frames)
            try:
                result = self._calls.infer(model, region.tensor(model.inputs[0], frames.shape), asked)
            except InferenceError as error:
                if LOST_REGION not in str(error) or self._calls.closing.is_set():
                    raise
                self._regions.known.discard(region.name)  # a restarted server knows none of them
                region = None
                continue
            # Only now: of a request that was given up the server may still be reading.
            self._regions.put_back(region)
            return result
        return self._calls.infer(model, raw_tensor(model.inputs[0], frames), asked)

    def _another_region(self, size_bytes: int) -> Region | None:
        """Return a new region; None where there is no room, or the server has come back and wants none any more."""
        try:
            return self._new_region(size_bytes)
        except OSError:
            return None
        except InferenceError as error:
            if self._wanted is Transport.SHM:
                raise
            log.warning("shared memory is no longer open to us, frames travel as they are: %s", error)
            self.transport = Transport.RAW
            return None

    def _close_what_others_left(self) -> None:
        """Have the server close regions of clients that are gone; it would keep their memory for good."""
        try:
            answer = self._calls.triton.get_system_shared_memory_status(client_timeout=GOODBYE_TIMEOUT_S)
            for name in left_behind(answer.regions):
                self._unregister(name)
        except InferenceServerException as error:
            log.debug("regions of clients that are gone stay open: %s", error)

    def _unregister(self, name: str) -> None:
        self._calls.triton.unregister_system_shared_memory(name, client_timeout=GOODBYE_TIMEOUT_S)
