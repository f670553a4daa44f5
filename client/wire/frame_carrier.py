"""Carries frames to a server, the best way that is open, and finds another when one closes."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.wire.calls import RetryPolicy, Rpc, Steps, Work, repeated
from affserve.client.wire.messages import jpeg_tensor, raw_tensor
from affserve.client.wire.shared_memory import CHUNK_BYTES, Region, RegionPool, abandon, left_behind, remove_stale_files
from affserve.client.wire.transport import SMALLEST_MEASURE_BYTES, Link, Transport
from affserve.export.contract import AFFECT, AFFECT_JPEG, CLIP_ENCODER, CLIP_ENCODER_JPEG, ModelSpec
from affserve.train.errors import InferenceError, ServerError

JPEG_MODEL = {CLIP_ENCODER.name: CLIP_ENCODER_JPEG, AFFECT.name: AFFECT_JPEG}
MOST_REGISTRATIONS = 5  # of regions for one message; each is lost only when the server was restarted in between
GOODBYE_TIMEOUT_S = 2.0
MEASURED_CHUNKS = 3  # of them the fastest counts: the first waits for the connection to gather speed
EXACT = "as they are"
LOST_REGION = "Unable to find shared memory region"

log = logging.getLogger(__name__)


class FrameCarrier:
    """Sends frames to a model that takes them. `transport` says how they travel now."""

    def __init__(
        self, url: str, *, policy: RetryPolicy, wanted: Transport, jpeg_quality: int, is_one_server: bool
    ) -> None:
        self.transport = Transport.RAW
        self.link: Link | None = None  # once it has been measured
        self._url = url
        self._policy = policy
        self._wanted = wanted
        self._quality = jpeg_quality
        self._is_one_server = is_one_server
        self._regions = RegionPool()
        self._chunks_to_measure = 0
        self._released = False

    @property
    def fidelity(self) -> str:
        """What travelling does to frames now: nothing, or JPEG, which changes answers."""
        return f"JPEG of quality {self._quality}" if self.transport is Transport.JPEG else EXACT

    @property
    def demanded_fidelity(self) -> str | None:
        """The fidelity that was asked for; None when it may change with the link."""
        return None if self._wanted is Transport.AUTO else self.fidelity

    @property
    def wants_quiet(self) -> bool:
        """Whether the next chunk should travel alone, because its way is going to be measured."""
        return self._chunks_to_measure > 0

    def choose(self) -> Steps[None]:
        """Decide how frames travel; ServerError when what was asked for cannot be."""
        if self._wanted in (Transport.AUTO, Transport.SHM):
            problem = yield from self._try_shared_memory()
            if problem is not None and self._wanted is Transport.SHM:
                raise ServerError(
                    f"frames cannot reach {self._url} by shared memory: {problem}; --transport auto uses it where it "
                    "can"
                )
            # Statistics of several servers tell nothing about the way to one.
            if problem is not None and self._is_one_server and self._wanted is Transport.AUTO:
                self._chunks_to_measure = MEASURED_CHUNKS
        elif self._wanted is Transport.JPEG:
            yield from self._require_jpeg()
            self.transport = Transport.JPEG

    def carry(self, model: ModelSpec, frames: NDArray[np.uint8], asked: str) -> Steps[triton.InferResult]:
        """Have `model` answer for frames (N, 224, 224, 3); asked: who is asked what, for messages."""
        if self.transport is Transport.SHM:
            return (yield from self._by_shared_memory(model, frames, asked))
        if self.transport is Transport.JPEG:
            tensor = yield Work(partial(jpeg_tensor, frames, self._quality))
            return (yield from self._infer(JPEG_MODEL[model.name], tensor, asked))
        if self.wants_quiet and model is CLIP_ENCODER and frames.nbytes >= SMALLEST_MEASURE_BYTES:
            return (yield from self._measured(model, frames, asked))
        return (yield from self._raw(model, frames, asked))

    def release(self) -> Steps[None]:
        """Have the server close the regions; one that a request still reads, the next client has it close."""
        self._released = True
        for name in self._regions.known:
            try:
                yield Rpc(
                    method="unregister_system_shared_memory", arguments={"name": name}, timeout_s=GOODBYE_TIMEOUT_S
                )
            except InferenceServerException as error:
                if error.status() == "StatusCode.UNAVAILABLE":
                    return  # with the server its memory has gone
                abandon(name)
            self._regions.forget(name)

    def _infer(self, model: ModelSpec, tensor: triton.InferInput, asked: str) -> Steps[triton.InferResult]:
        return (yield from repeated(self._policy, asked, "infer", model_name=model.name, inputs=[tensor]))

    def _raw(self, model: ModelSpec, frames: NDArray[np.uint8], asked: str) -> Steps[triton.InferResult]:
        spec = model.inputs[0]
        return (yield from self._infer(model, raw_tensor(spec.name, spec.datatype, frames), asked))

    # --- shared memory ---

    def _try_shared_memory(self) -> Steps[str | None]:
        """Switch to shared memory if the server can open a region of ours; return why not otherwise."""
        if not self._is_one_server:
            return "there are several servers, and a region belongs to one"
        remove_stale_files()
        try:
            region = yield from self._new_region(CHUNK_BYTES)
        except InferenceError as error:
            return str(error)
        except OSError as error:
            return f"/dev/shm has no room or is not there ({error})"
        self._regions.put_back(region)
        self.transport = Transport.SHM
        yield from self._close_what_others_left()
        return None

    def _new_region(self, size_bytes: int) -> Steps[Region]:
        """Make a region that the server has open and that has no name any more; InferenceError, OSError."""
        # A region has a name while it is being registered. That must not last as long as a restart.
        yield from repeated(self._policy, f"the server at {self._url}", "is_server_live")
        region = Region(max(size_bytes, CHUNK_BYTES))
        try:
            yield from repeated(
                self._policy,
                f"the server at {self._url}, sent shared memory",
                "register_system_shared_memory",
                name=region.name,
                key=f"/{region.name}",
                byte_size=region.size_bytes,
            )
            self._regions.add(region)
        finally:
            region.unlink()
        return region

    def _by_shared_memory(self, model: ModelSpec, frames: NDArray[np.uint8], asked: str) -> Steps[triton.InferResult]:
        region = self._regions.take(frames.nbytes)
        for _ in range(MOST_REGISTRATIONS):
            if region is None:
                region = yield from self._another_region(frames.nbytes)
            if region is None:
                break
            yield Work(partial(region.write, frames))
            try:
                result = yield from self._infer(model, region.tensor(model.inputs[0], frames.shape), asked)
            except InferenceError as error:
                if LOST_REGION not in str(error) or self._released:
                    raise
                self._regions.forget(region.name)  # a restarted server knows none of them
                region = None
                continue
            # Only now: of a request that was given up the server may still be reading.
            self._regions.put_back(region)
            return result
        return (yield from self._raw(model, frames, asked))

    def _another_region(self, size_bytes: int) -> Steps[Region | None]:
        """Return a new region; None where there is no room, or the server has come back and wants none any more."""
        try:
            return (yield from self._new_region(size_bytes))
        except OSError:
            return None
        except InferenceError as error:
            if self._wanted is Transport.SHM:
                raise
            log.warning("shared memory is no longer open to us, frames travel as they are: %s", error)
            self.transport = Transport.RAW
            return None

    def _close_what_others_left(self) -> Steps[None]:
        """Have the server close regions of clients that are gone; it would keep their memory for good."""
        try:
            answer = yield Rpc(method="get_system_shared_memory_status", timeout_s=GOODBYE_TIMEOUT_S)
            for name in left_behind(answer.regions):
                yield Rpc(
                    method="unregister_system_shared_memory", arguments={"name": name}, timeout_s=GOODBYE_TIMEOUT_S
                )
        except InferenceServerException as error:
            log.debug("regions of clients that are gone stay open: %s", error)

    # --- JPEG ---

    def _require_jpeg(self) -> Steps[None]:
        if not (yield from self._has_jpeg()):
            raise ServerError(
                f"the server at {self._url} does not serve {CLIP_ENCODER_JPEG.name}: its repository was exported "
                "without the JPEG models; export it again, or use --transport raw"
            )

    def _has_jpeg(self) -> Steps[bool]:
        asked = f"{CLIP_ENCODER_JPEG.name} on {self._url}, asked whether it is ready"
        return bool((yield from repeated(self._policy, asked, "is_model_ready", model_name=CLIP_ENCODER_JPEG.name)))

    def _measured(self, model: ModelSpec, frames: NDArray[np.uint8], asked: str) -> Steps[triton.InferResult]:
        """Send a chunk as it is and see how long the way takes."""
        before = yield from self._served(model)
        began_s = time.perf_counter()
        result = yield from self._raw(model, frames, asked)
        call_s = time.perf_counter() - began_s
        after = yield from self._served(model)
        if (requests := after[0] - before[0]) > 0:
            server_s = (after[1] - before[1]) / 1e9 / requests
            yield from self._judge(Link(sent_bytes=frames.nbytes, call_s=call_s, server_s=server_s))
        return result

    def _judge(self, link: Link) -> Steps[None]:
        """Switch to JPEG when every measured chunk was held up; one that was not shows that the link is fast enough."""
        self.link = link
        self._chunks_to_measure = self._chunks_to_measure - 1 if link.is_slow else 0
        if link.is_slow and self._chunks_to_measure == 0 and (yield from self._has_jpeg()):
            self.transport = Transport.JPEG
            log.warning(
                "slow link to %s (%.0f MB/s): frames travel as JPEG, quality %d, which changes answers; "
                "--transport raw keeps them exact",
                self._url,
                link.mb_per_s,
                self._quality,
            )

    def _served(self, model: ModelSpec) -> Steps[tuple[int, int]]:
        """Return how many requests the model has answered and how long they took together, in ns."""
        asked = f"{model.name} on {self._url}, asked for its statistics"
        answer = yield from repeated(self._policy, asked, "get_inference_statistics", model_name=model.name)
        totals: list[Any] = [one.inference_stats.success for one in answer.model_stats]
        return sum(int(one.count) for one in totals), sum(int(one.ns) for one in totals)
