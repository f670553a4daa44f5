"""Calls that are wrong below inference: shared memory, closed interfaces, and bytes that are no message at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2

from affserve.benchmarks.serving.bad_inference import (
    TIMEOUT_S,
    Kind,
    Random,
    Send,
    Server,
    any_model,
    calling,
    error_of,
    pick,
    request_for,
    shape_of,
    zeros_for,
)
from affserve.export.contract import CLIP_ENCODER, TEMPORAL_HEAD

SHARED_MEMORY = Path("/dev/shm")
REGION = "affserve-bad-request"
PROTOCOL_KINDS: dict[str, Kind] = {}


def _kind(function: Kind) -> Kind:
    PROTOCOL_KINDS[function.__name__.strip("_")] = function
    return function


@_kind
def _bad_region(rng: Random, server: Server) -> Send:
    """A region of a file that is not there, or is elsewhere."""
    key = pick(rng, ["/no-such-file", "../../etc/passwd", "/../etc/passwd", "", "/" + "k" * 5_000, "/"])
    size, offset = pick(rng, [0, 64, 2**50]), pick(rng, [0, 2**40])
    return calling("SystemSharedMemoryRegister", _registration(REGION, key, size, offset))


@_kind
def _beyond_region(rng: Random, server: Server) -> Send:
    """A file, registered as larger than it is, or a request for what lies behind it or in a region nobody knows."""
    name = f"{REGION}-{rng.integers(2**60):x}"
    size = len(zeros_for(TEMPORAL_HEAD))
    offset = pick(rng, [1, size, 2**40, 2**62])
    request = _request_in_region(pick(rng, [name, "nobody-knows-me"]), offset, size)
    register = _registration(name, f"/{name}", size + pick(rng, [0, 0, 4096, 2**40]), 0)
    calls = [calling("SystemSharedMemoryRegister", register), calling("ModelInfer", request)]
    unregister = calling("SystemSharedMemoryUnregister", service_pb2.SystemSharedMemoryUnregisterRequest(name=name))

    def send(server: Server) -> str | None:
        file = SHARED_MEMORY / name
        file.touch(0o600)
        file.write_bytes(bytes(size))
        try:
            return next((error for call in calls if (error := call(server)) is not None), None)
        finally:
            unregister(server)
            file.unlink()

    return send


def _registration(name: str, key: str, size: int, offset: int) -> service_pb2.SystemSharedMemoryRegisterRequest:
    return service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=size, offset=offset)


def _request_in_region(region: str, offset: int, size: int) -> service_pb2.ModelInferRequest:
    request = request_for(TEMPORAL_HEAD, shape_of(TEMPORAL_HEAD), b"")
    del request.raw_input_contents[:]
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_offset"].int64_param = offset
    parameters["shared_memory_byte_size"].int64_param = size
    return request


@_kind
def _forbidden(rng: Random, server: Server) -> Send:
    calls = [
        ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=CLIP_ENCODER.name)),
        ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=CLIP_ENCODER.name)),
        ("RepositoryIndex", service_pb2.RepositoryIndexRequest()),
        ("LogSettings", service_pb2.LogSettingsRequest()),
        ("TraceSetting", service_pb2.TraceSettingRequest()),
    ]
    return calling(*pick(rng, calls))


@_kind
def _garbled_message(rng: Random, server: Server) -> Send:
    """Bytes that are no ModelInferRequest, or a method that does not exist."""
    body = rng.integers(0, 256, int(rng.integers(1, 5_000)), dtype=np.uint8).tobytes()
    method = pick(rng, ["ModelInfer", "ServerMetadata", "NoSuchMethod"])

    def send(server: Server) -> str | None:
        with server.channel() as channel:
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            return error_of(lambda: call(body, timeout=TIMEOUT_S))

    return send


@_kind
def _garbled_connection(rng: Random, server: Server) -> Send:
    noise = rng.integers(0, 256, int(rng.integers(1, 5_000)), dtype=np.uint8).tobytes()
    greeting = pick(rng, [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01"])
    to_grpc = bool(rng.random() < 0.5)
    return lambda server: server.grpc_bytes(greeting + noise) if to_grpc else server.http(greeting + noise)


@_kind
def _bad_http(rng: Random, server: Server) -> Send:
    model = any_model(rng, server)
    spec = model.inputs[0]
    tensor = {"name": spec.name, "shape": shape_of(model), "datatype": spec.datatype, "data": [0]}
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"inputs": 3}',
        b'{"inputs": [{}]}',
        b"[" * 900,
        rng.integers(0, 256, 500, dtype=np.uint8).tobytes(),
        json.dumps({"inputs": [tensor]}).encode(),
        json.dumps({"inputs": [{**tensor, "shape": [2**62, 2**62]}]}).encode(),
        json.dumps({"inputs": [{**tensor, "shape": ["a", -1, None]}]}).encode(),
        json.dumps({"inputs": [{**tensor, "data": ["\ud800", [[[]]], {"a": 1}]}]}).encode(),
        json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 2**62}}]}).encode(),
    ]
    body = pick(rng, bodies)
    header = pick(rng, ["", "Inference-Header-Content-Length: ", "Content-Encoding: gzip"])
    if header.endswith(": "):
        header += pick(rng, ["-1", "0", "99999999999999999999", "7", "x"])
    path = pick(rng, [f"/v2/models/{model.name}/infer", "/v2/models//infer", "/v2/../../etc/passwd", "/v3"])
    method = pick(rng, ["POST", "POST", "POST", "PUT", "NONSENSE"])
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", header]
    message = "\r\n".join(line for line in lines if line).encode() + b"\r\n\r\n" + body
    return lambda server: server.http(message)
