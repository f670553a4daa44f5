"""Inference requests with one thing wrong in each, drawn at random.

Built below tritonclient's own checks, straight from the protocol's messages.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from affserve.export.contract import FEATURE_WIDTH, IMAGE_SIZE_PX, TEMPORAL_HEAD, ModelSpec

TIMEOUT_S = 30.0
DATATYPES = ("BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "FP8", "")
ITEM_BYTES = {"UINT8": 1, "FP32": 4, "BYTES": 4}  # of BYTES, the length of an empty one
ANY_LENGTH = 2**31  # more than any file here has

T = TypeVar("T")
Random = np.random.Generator
Send = Callable[["Server"], "str | None"]  # returns the error that was answered; None: accepted, or no answer at all
Kind = Callable[[Random, "Server"], Send]
INFERENCE_KINDS: dict[str, Kind] = {}  # name -> draws one
REFUSED = "connection closed"


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the requests go."""

    grpc_url: str
    http_url: str  # HOST:PORT
    models: tuple[ModelSpec, ...]

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """Open a connection of its own, which a garbled one may spoil."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.grpc_url, options=options) as channel:
            yield channel

    def http(self, message: bytes) -> str | None:
        """Send bytes to the HTTP port; return the error that came back, None when it is none."""
        return self._exchange(self.http_url, message)

    def grpc_bytes(self, message: bytes) -> str | None:
        """Send bytes to the gRPC port."""
        return self._exchange(self.grpc_url, message)

    def _exchange(self, address: str, message: bytes) -> str | None:
        host, _, port = address.rpartition(":")
        answer = b""
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            try:
                connection.sendall(message)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    answer += part
            except TimeoutError:
                return None
            except OSError:
                return REFUSED
        accepted = answer.split(b" ", 2)[1:2] == [b"200"]
        return None if accepted else answer.decode(errors="replace")[:500] or REFUSED


def _kind(function: Kind) -> Kind:
    INFERENCE_KINDS[function.__name__.strip("_")] = function
    return function


def pick(rng: Random, options: Sequence[T]) -> T:
    """Return one of them; NumPy's choice would make arrays of them and lose NUL characters."""
    return options[int(rng.integers(len(options)))]


def any_model(rng: Random, server: Server) -> ModelSpec:
    """Return one of the server's models."""
    return pick(rng, server.models)


def request_for(model: ModelSpec, shape: list[int], content: bytes, **changes: Any) -> service_pb2.ModelInferRequest:
    """Return a request for a model, right but for its changes: name, datatype, model_name, version."""
    spec = model.inputs[0]
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name=changes.get("name", spec.name), datatype=changes.get("datatype", spec.datatype), shape=shape
    )
    return service_pb2.ModelInferRequest(
        model_name=changes.get("model_name", model.name),
        model_version=changes.get("version", ""),
        inputs=[tensor],
        raw_input_contents=[content],
    )


def shape_of(model: ModelSpec, length: int = 1) -> list[int]:
    """Return a right shape of its input, for so many frames."""
    shape = [length if one == -1 else one for one in model.inputs[0].shape]
    return [length, *shape] if model.max_batch_size else shape


def zeros_for(model: ModelSpec, length: int = 1) -> bytes:
    """Return a right input of zeros; as BYTES these are empty strings."""
    return bytes(ITEM_BYTES[model.inputs[0].datatype] * math.prod(shape_of(model, length)))


def calling(method: str, request: Any) -> Send:
    """Return what calls one method of Triton's service."""

    def send(server: Server) -> str | None:
        with server.channel() as channel:
            call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
            return error_of(lambda: call(request, timeout=TIMEOUT_S))

    return send


def _infer(request: service_pb2.ModelInferRequest) -> Send:
    return calling("ModelInfer", request)


def error_of(call: Callable[[], Any]) -> str | None:
    """Return the error that a call is answered with; None when it succeeds or is not answered at all."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return None
        return f"{error.code().name}: {error.details()}"
    return None


@_kind
def _wrong_type(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    others = [one for one in DATATYPES if one != model.inputs[0].datatype]
    return _infer(request_for(model, shape_of(model), zeros_for(model), datatype=pick(rng, others)))


@_kind
def _wrong_shape(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    shape = [int(one) for one in rng.integers(1, 9, rng.integers(0, 6))]
    return _infer(
        request_for(model, [*shape, 5], bytes(int(np.prod([*shape, 5])) * ITEM_BYTES[model.inputs[0].datatype]))
    )


@_kind
def _wrong_name(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    name = pick(rng, ["", "x" * 10_000, "../../etc/passwd", "frames ", "Frames", "%s%n%n"])
    return _infer(request_for(model, shape_of(model), zeros_for(model), name=name))


@_kind
def _missing_input(rng: Random, server: Server) -> Send:
    return _infer(service_pb2.ModelInferRequest(model_name=any_model(rng, server).name))


@_kind
def _extra_input(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    request = request_for(model, shape_of(model), zeros_for(model))
    request.inputs.add(name=pick(rng, [model.inputs[0].name, "more"]), datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(16))
    return _infer(request)


@_kind
def _too_many_frames(rng: Random, server: Server) -> Send:
    length = int(rng.integers(301, 400))
    return _infer(request_for(TEMPORAL_HEAD, shape_of(TEMPORAL_HEAD, length), zeros_for(TEMPORAL_HEAD, length)))


@_kind
def _no_frames(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    return _infer(request_for(model, shape_of(model, 0), b""))


@_kind
def _negative_length(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    shape = shape_of(model)
    shape[int(rng.integers(len(shape)))] = -pick(rng, [1, 2, 2**31, 2**63])
    return _infer(request_for(model, shape, zeros_for(model)))


@_kind
def _huge_length(rng: Random, server: Server) -> Send:
    """Terabytes that are only announced, and products that overflow 64 bits to something small.

    Never one frame more than a multiple of 2**32: Triton counts a batch in 32 bits, and to it that is one frame.
    """
    model = any_model(rng, server)
    shape = shape_of(model)
    shape[0] = pick(rng, [10**6, 2**31, 2**32 + 2, 2**40, 2**55, 2**62, 2**63 - 1])
    return _infer(request_for(model, shape, zeros_for(model)))


@_kind
def _wrong_size(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    size = len(zeros_for(model))
    wrong = pick(rng, [0, 1, size - 1, size + 1, 2 * size, int(rng.integers(2, 300_000))])
    return _infer(request_for(model, shape_of(model), bytes(wrong + (wrong == size))))


@_kind
def _contents_twice(rng: Random, server: Server) -> Send:
    """The same tensor as raw bytes and as numbers."""
    model = any_model(rng, server)
    request = request_for(model, shape_of(model), zeros_for(model))
    request.inputs[0].contents.fp32_contents.extend([0.0] * int(rng.integers(1, 600)))
    return _infer(request)


@_kind
def _unknown_model(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    name = pick(rng, ["", "clip", "../clip_encoder", "clip_encoder/1", "a" * 5_000])
    return _infer(request_for(model, shape_of(model), zeros_for(model), model_name=name))


@_kind
def _unknown_version(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    version = pick(rng, ["2", "0", "-1000", "latest", "9" * 30])
    return _infer(request_for(model, shape_of(model), zeros_for(model), version=version))


@_kind
def _unknown_output(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    request = request_for(model, shape_of(model), zeros_for(model))
    request.outputs.add(name=pick(rng, ["nothing", "", model.inputs[0].name, "o" * 5_000]))
    return _infer(request)


@_kind
def _not_finite(rng: Random, server: Server) -> Send:
    length = int(rng.integers(1, 301))
    features = rng.normal(size=(length, FEATURE_WIDTH)).astype(np.float32)
    features[rng.integers(length), rng.integers(FEATURE_WIDTH)] = rng.choice([np.nan, np.inf, -np.inf])
    return _infer(request_for(TEMPORAL_HEAD, [length, FEATURE_WIDTH], features.tobytes()))


@_kind
def _broken_jpeg(rng: Random, server: Server) -> Send:
    """A broken file to a model for files if there is one, else to one that wants pixels."""
    file = _broken_file(rng)
    models = [model for model in server.models if model.inputs[0].datatype == "BYTES"] or server.models
    model = pick(rng, models)
    length = len(file) if rng.random() < 0.8 else int(rng.integers(ANY_LENGTH, 2**32))
    return _infer(request_for(model, shape_of(model), length.to_bytes(4, "little") + file))


def _broken_file(rng: Random) -> bytes:
    """Return a JPEG file that was cut short, has another size, announces another size, or is none at all."""
    pixels = rng.integers(0, 256, (IMAGE_SIZE_PX + 1, IMAGE_SIZE_PX + 1, 3), dtype=np.uint8)
    side = pick(rng, [IMAGE_SIZE_PX + 1, 100, 1])
    file = _jpeg(pixels[:IMAGE_SIZE_PX, :IMAGE_SIZE_PX])
    size_at = file.find(b"\xff\xc0") + 5  # in SOF0: marker, length, precision, height, width
    announced = pick(rng, [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\x00\xe0"])
    broken = (
        file[: int(rng.integers(0, len(file) // 2))],
        _jpeg(pixels[:side, :side]),
        file[:size_at] + announced + file[size_at + 4 :],
        rng.integers(0, 256, int(rng.integers(0, 3000)), dtype=np.uint8).tobytes(),
    )
    return pick(rng, broken)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    import cv2

    return bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
