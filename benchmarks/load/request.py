"""A request as the bytes that travel, made once and sent many times: what a load generator must not spend time on.

In come a model, a number of frames and a transport; out comes a call that sends the same bytes again. AffectClient's
retries are left out on purpose: an error is a result here. What a caller does before it has a request (decoding, and
for shared memory one copy of the frames) is not in the times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from affserve.benchmarks.measuring.films import smooth_jpeg
from affserve.client.wire.endpoint import addresses_of, parse_endpoint
from affserve.client.wire.shared_memory import Region
from affserve.client.wire.transport import Transport
from affserve.export.contract import AFFECT, AFFECT_JPEG, CLIP_ENCODER, CLIP_ENCODER_JPEG, MODELS, TEMPORAL_HEAD
from affserve.train.errors import DataError, ServerError

INFER = "/inference.GRPCInferenceService/ModelInfer"
RAW, SHM, JPEG = Transport.RAW.value, Transport.SHM.value, Transport.JPEG.value
TRANSPORTS = (RAW, SHM, JPEG)
ASKED = (CLIP_ENCODER.name, TEMPORAL_HEAD.name, AFFECT.name)
# The model that takes JPEG files, by the one that takes pixels.
JPEG_MODEL = {CLIP_ENCODER.name: CLIP_ENCODER_JPEG.name, AFFECT.name: AFFECT_JPEG.name}
UNREGISTER_PAUSE_S = 0.02
CALLS_PER_CONNECTION = 6  # as perf_analyzer and tritonclient's C++ library share channels


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked: the same request every time."""

    url: str  # HOST:PORT of gRPC; several, separated by commas, take turns
    model: str  # name in the contract
    frames: int  # N of clip_encoder, T of temporal_head and affect
    transport: str = RAW
    timeout_s: float = 30.0  # of one request; then it counts as DEADLINE_EXCEEDED

    def __post_init__(self) -> None:
        if self.model not in ASKED:
            raise DataError(f"model is {self.model!r}, expected one of {', '.join(ASKED)}")
        if self.transport not in TRANSPORTS:
            raise DataError(f"transport is {self.transport!r}, expected one of {', '.join(TRANSPORTS)}")
        if self.transport == JPEG and self.model not in JPEG_MODEL:
            raise DataError(f"{self.model} takes no JPEG; expected {' or '.join(JPEG_MODEL)}, or raw or shm")
        if self.frames < 1 or self.timeout_s <= 0:
            raise DataError(f"frames is {self.frames}, timeout_s {self.timeout_s:g}; expected at least 1, and above 0")

    @property
    def served_model(self) -> str:
        """The model on the server that answers."""
        return JPEG_MODEL[self.model] if self.transport == JPEG else self.model

    def client_options(self) -> dict[str, Any]:
        """Return the arguments of a tritonclient that shares no connection with others of this process."""
        addresses = parse_endpoint(self.url).addresses
        options = addresses[0].client_options()
        arguments = [*options["channel_args"], ("grpc.use_local_subchannel_pool", 1)]
        if len(addresses) > 1:  # gRPC takes a list of numeric addresses only
            numeric = [f"{ip}:{one.port}" for one in addresses for ip in addresses_of(one.host)]
            options["url"] = f"ipv4:{','.join(numeric)}"
            arguments.append(("grpc.lb_policy_name", "round_robin"))
        return {**options, "channel_args": arguments}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request ready to be sent over any connection of this process."""

    target: Target
    message: bytes
    request_bytes: int  # what travels over gRPC


@contextmanager
def prepared(target: Target, seed: int = 0) -> Iterator[Prepared]:
    """Make a request of random content; shared memory lives as long as the context and is unregistered after it."""
    array = _content(target, seed)
    spec = MODELS[target.served_model].inputs[0]
    with ExitStack() as stack:
        message = service_pb2.ModelInferRequest(model_name=target.served_model)
        tensor = message.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        payload = _payload(array)
        if target.transport == SHM:
            region = stack.enter_context(_shared(target, payload))
            tensor.parameters["shared_memory_region"].string_param = region
            tensor.parameters["shared_memory_byte_size"].int64_param = len(payload)
        else:
            message.raw_input_contents.append(payload)
        sent = message.SerializeToString()
        yield Prepared(target=target, message=sent, request_bytes=len(sent))


def _content(target: Target, seed: int) -> NDArray[Any]:
    """Return random frames or features; JPEG files where the transport says so."""
    spec = MODELS[target.served_model].inputs[0]
    shape = (target.frames, *(length for length in spec.shape if length != -1))
    rng = np.random.default_rng(seed)
    if spec.numpy_dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if spec.numpy_dtype == np.object_:
        files = [smooth_jpeg(seed + k) for k in range(target.frames)]
        return np.array(files, dtype=np.object_).reshape(shape)
    return rng.standard_normal(shape).astype(spec.numpy_dtype)


def _payload(array: NDArray[Any]) -> bytes:
    """Return an array as the protocol has it; byte strings carry their length before them."""
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel().tolist())


@contextmanager
def _shared(target: Target, payload: bytes) -> Iterator[str]:
    """Put a payload where a server of this machine reads it; yield the region's name on the server."""
    region = Region(len(payload))
    with triton.InferenceServerClient(**target.client_options()) as client:
        try:
            region.write(np.frombuffer(payload, np.uint8))
            client.register_system_shared_memory(
                region.name, f"/{region.name}", len(payload), client_timeout=target.timeout_s
            )
        except InferenceServerException as error:
            raise ServerError(
                f"the server at {target.url} does not take shared memory: {error.message()}; expected one on this "
                "machine that allows it: measure with --transport raw"
            ) from error
        finally:
            region.unlink()  # the server keeps what it has opened
        try:
            yield region.name
        finally:
            _unregister(client, region.name, target)


def _unregister(client: triton.InferenceServerClient, name: str, target: Target) -> None:
    """Have the server close a region; it holds one for an instant after it has answered the last request."""
    deadline_s = time.monotonic() + target.timeout_s
    while True:
        try:
            client.unregister_system_shared_memory(name, client_timeout=target.timeout_s)
            return
        except InferenceServerException as error:
            if time.monotonic() > deadline_s or "in use" not in str(error.message()):
                # The server is gone or replaced, or stuck: what it has open ends with it.
                return
        time.sleep(UNREGISTER_PAUSE_S)


class Connection:
    """One HTTP/2 connection of its own that sends prepared requests; a context manager."""

    def __init__(self, target: Target) -> None:
        options = target.client_options()
        self._channel = grpc.insecure_channel(options["url"], options=options["channel_args"])
        # Bytes in, bytes out: nothing is serialised or parsed while the clock runs.
        self.infer = self._channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def check_answer(answer: bytes, target: Target) -> None:
    """Check once that an answer has the contract's outputs; ServerError when it has not."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    known = {spec.name: spec for spec in MODELS[target.served_model].outputs}
    found = {output.name: tuple(output.shape) for output in response.outputs}
    wrong = [name for name, shape in found.items() if name not in known or shape[0] != target.frames]
    if wrong or not found:
        raise ServerError(
            f"{target.served_model} on {target.url} answered {found}; expected some of {', '.join(known)} with "
            f"{target.frames} rows: it serves something else than `affserve export` wrote"
        )
