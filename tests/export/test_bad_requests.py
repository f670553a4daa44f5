"""Requests that are wrong in every way, to the real server: each is refused in words, and nothing is the worse for it.

Built below tritonclient's own checks, straight from the protocol's messages.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_server import http_of, needs_wheel, process_of
from tritonclient.grpc import service_pb2 as pb

from affserve.client.client import AffectClient
from affserve.export.contract import CLIP_ENCODER, CLIP_ENCODER_JPEG, FEATURE_WIDTH, MODELS, TEMPORAL_HEAD, ModelSpec

pytestmark = needs_wheel

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)
LEAKS = ("/usr", "/tmp", "/home", "/dev", "site-packages", ".py", "Traceback")
ITEM_BYTES = {"UINT8": 1, "FP32": 4, "BYTES": 4}  # of BYTES, the length of an empty one
SERVICE = "/inference.GRPCInferenceService"
REGION = "affserve-bad-request"
HEAD = TEMPORAL_HEAD
BIG = 2**31  # more than any file here has
NOBODY = "../../etc/passwd"
Refusal = Callable[[str, Any], str]  # method and message -> what the server says against it


def shape_of(model: ModelSpec, length: int = 1) -> list[int]:
    shape = [length if one == -1 else one for one in model.inputs[0].shape]
    return [length, *shape] if model.max_batch_size else shape


def good(model: ModelSpec = HEAD, content: bytes | None = None, **changes: Any) -> pb.ModelInferRequest:
    """A request that is right but for its changes: name, datatype and shape of its input, model_name, model_version."""
    spec = model.inputs[0]
    tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape_of(model)}
    tensor |= {key: changes.pop(key) for key in tensor.keys() & changes.keys()}
    zeros = bytes(ITEM_BYTES[spec.datatype] * math.prod(shape_of(model)))
    inputs = [pb.ModelInferRequest.InferInputTensor(**tensor)]
    contents = [zeros if content is None else content]
    return pb.ModelInferRequest(
        **{"model_name": model.name, "inputs": inputs, "raw_input_contents": contents, **changes}
    )


def with_more(kind: str, name: str) -> pb.ModelInferRequest:
    """A right request for the head with a second one of its inputs or outputs."""
    request = good()
    getattr(request, kind).add(name=name)
    return request


def in_region(name: str) -> pb.ModelInferRequest:
    request = good(raw_input_contents=[])
    request.inputs[0].parameters["shared_memory_region"].string_param = name
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 4 * FEATURE_WIDTH
    return request


def register(key: str, size: int = 64, offset: int = 0) -> pb.SystemSharedMemoryRegisterRequest:
    return pb.SystemSharedMemoryRegisterRequest(name=REGION, key=key, byte_size=size, offset=offset)


def jpeg(side: int = 224) -> bytes:
    return bytes(cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))[1])


def file_request(file: bytes, length: int | None = None) -> pb.ModelInferRequest:
    return good(CLIP_ENCODER_JPEG, (len(file) if length is None else length).to_bytes(4, "little") + file)


CASES: dict[str, tuple[str, Any]] = {
    "datatype of another tensor": ("ModelInfer", good(datatype="UINT8")),
    "datatype nobody knows": ("ModelInfer", good(datatype="FP8")),
    "no datatype": ("ModelInfer", good(datatype="")),
    "no shape": ("ModelInfer", good(shape=[])),
    "one axis too many": ("ModelInfer", good(shape=[1, 1, FEATURE_WIDTH])),
    "features too wide": ("ModelInfer", good(shape=[1, 513], content=bytes(4 * 513))),
    "301 frames": ("ModelInfer", good(shape=[301, FEATURE_WIDTH], content=bytes(4 * 301 * FEATURE_WIDTH))),
    "no frames": ("ModelInfer", good(shape=[0, FEATURE_WIDTH], content=b"")),
    "a negative length": ("ModelInfer", good(shape=[-(2**63), FEATURE_WIDTH])),
    "a batch of terabytes": ("ModelInfer", good(CLIP_ENCODER, shape=[2**40, 224, 224, 3])),
    "a batch that overflows": ("ModelInfer", good(CLIP_ENCODER, shape=[2**62, 224, 224, 3])),
    # Never one frame more than a multiple of 2**32: Triton counts a batch in 32 bits, and to it that is one frame.
    "a batch beyond 32 bits": ("ModelInfer", good(CLIP_ENCODER, shape=[2**32 + 2, 224, 224, 3])),
    "a name in other letters": ("ModelInfer", good(name="Features")),
    "a long name": ("ModelInfer", good(name="x" * 10_000)),
    "a path as name": ("ModelInfer", good(name=NOBODY)),
    "no input": ("ModelInfer", pb.ModelInferRequest(model_name=HEAD.name)),
    "the input twice": ("ModelInfer", with_more("inputs", HEAD.inputs[0].name)),
    "one input more": ("ModelInfer", with_more("inputs", "more")),
    "an output nobody knows": ("ModelInfer", with_more("outputs", "o" * 5_000)),
    "one byte too few": ("ModelInfer", good(content=bytes(4 * FEATURE_WIDTH - 1))),
    "one byte too many": ("ModelInfer", good(content=bytes(4 * FEATURE_WIDTH + 1))),
    "a model nobody knows": ("ModelInfer", good(model_name="clip")),
    "a path as model": ("ModelInfer", good(model_name="../clip_encoder")),
    "no model": ("ModelInfer", good(model_name="")),
    "a version that is not there": ("ModelInfer", good(model_version="9" * 30)),
    "a version that is no number": ("ModelInfer", good(model_version="latest")),
    "noise as JPEG": ("ModelInfer", file_request(bytes(range(256)))),
    "a JPEG of another size": ("ModelInfer", file_request(jpeg(225))),
    "a JPEG that says it is huge": ("ModelInfer", file_request(jpeg().replace(b"\x00\xe0" * 2, b"\xff" * 4, 1))),
    "a JPEG longer than its bytes": ("ModelInfer", file_request(jpeg(), BIG)),
    "a region of no file": ("SystemSharedMemoryRegister", register("/no-such-file")),
    "a region elsewhere": ("SystemSharedMemoryRegister", register(NOBODY)),
    "a region beyond everything": ("SystemSharedMemoryRegister", register("/", 2**50, 2**40)),
    "a region nobody registered": ("ModelInfer", in_region("nobody-knows-me")),
    "loading a model": ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=HEAD.name)),
    "unloading a model": ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=HEAD.name)),
    "listing the repository": ("RepositoryIndex", pb.RepositoryIndexRequest()),
    "changing the log": ("LogSettings", pb.LogSettingsRequest()),
    "a method that is none": ("NoSuchMethod", good()),
}


def checked(said: str) -> str:
    assert not [sign for sign in LEAKS if sign in said.replace(NOBODY, "")], said
    return said


@pytest.fixture(scope="module", autouse=True)
def unharmed(server_url: str, client: AffectClient) -> Iterator[None]:
    """After all of them: the same processes, the same answers to the last bit, nothing left in shared memory."""

    def state() -> tuple[Any, ...]:
        server: psutil.Process = process_of(server_url)
        answers = client.affect(np.random.default_rng(5).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8))
        processes = {server.pid, *(child.pid for child in server.children(recursive=True))}
        files = [file.name for file in Path("/dev/shm").glob(f"{REGION}*")]
        return processes, {task: values.tobytes() for task, values in answers.items()}, files

    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="module")
def http_url(server_url: str) -> str:
    return http_of(server_url)


@pytest.fixture(scope="module")
def refusal(server_url: str) -> Iterator[Refusal]:
    """Sends a message, or bytes that are none, and returns what the server says against it."""
    with grpc.insecure_channel(server_url, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:

        def send(method: str, message: Any) -> str:
            sent = message if isinstance(message, bytes) else message.SerializeToString()
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"{SERVICE}/{method}")(sent, timeout=120)
            assert refused.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
            return checked(str(refused.value.details()))

        yield send


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_is_refused_in_words(refusal: Refusal, case: tuple[str, Any]) -> None:
    said = refusal(*case)
    assert len(said.split()) > 2 or case[0] == "NoSuchMethod", said


@few
@given(
    model=st.sampled_from([MODELS[name] for name in ("clip_encoder", "temporal_head", "affect")]),
    datatype=st.sampled_from(["UINT8", "FP32", "FP16", "BYTES", "INT64"]),
    shape=st.lists(st.integers(-2, 300), max_size=5),
    size=st.integers(0, 5_000),
)
def test_any_other_shape_type_and_size_is_refused(
    refusal: Refusal, model: ModelSpec, datatype: str, shape: list[int], size: int
) -> None:
    assume(shape[1:] != shape_of(model)[1:])
    refusal("ModelInfer", good(model, bytes(size), datatype=datatype, shape=shape))


@few
@given(share=st.floats(0, 0.9))
def test_what_is_cut_short_is_refused(refusal: Refusal, share: float) -> None:
    message, file = good(CLIP_ENCODER).SerializeToString(), jpeg()
    refusal("ModelInfer", message[: int(share * len(message))])
    refusal("ModelInfer", file_request(file[: int(share * len(file) / 2)]))


@few
@given(at=st.integers(0, 7 * FEATURE_WIDTH - 1), wrong=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_feature_that_is_no_number_is_refused_with_its_frame(refusal: Refusal, at: int, wrong: float) -> None:
    features = np.zeros(7 * FEATURE_WIDTH, np.float32)
    features[at] = wrong
    said = refusal("ModelInfer", good(content=features.tobytes(), shape=[7, FEATURE_WIDTH]))
    assert f"holds 1 values that are no finite number, the first in frame {at // FEATURE_WIDTH}" in said


def test_features_that_no_answer_can_come_from_are_refused(refusal: Refusal) -> None:
    """They are finite, and what a head computes from them is not."""
    extreme = np.full((2, FEATURE_WIDTH), 3e38, np.float32)
    said = refusal("ModelInfer", good(content=extreme.tobytes(), shape=[2, FEATURE_WIDTH]))
    assert "values that are no finite number, the first in frame 0: the input is beyond what the model was made" in said


TENSOR = {"name": "features", "shape": [1, FEATURE_WIDTH], "datatype": "FP32", "data": [0]}
BODY = st.one_of(
    st.binary(max_size=500),
    st.dictionaries(st.sampled_from(list(TENSOR)), st.none() | st.integers(-2, 2**62) | st.text(max_size=9)).map(
        lambda change: json.dumps({"inputs": [{**TENSOR, **change}]}).encode()
    ),
)


@few
@given(body=BODY, length=st.none() | st.sampled_from(["-1", "7", "x", "9" * 20]))
def test_http_is_refused_in_words_too(http_url: str, body: bytes, length: str | None) -> None:
    connection = http.client.HTTPConnection(http_url, timeout=120)
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    connection.request("POST", "/v2/models/temporal_head/infer", body, headers)
    answer = connection.getresponse()
    assert 400 <= answer.status < 600
    checked(answer.read().decode(errors="replace"))
    connection.close()


@few
@given(
    noise=st.binary(max_size=3000), greeting=st.sampled_from([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03"])
)
def test_bytes_that_are_no_protocol_end_only_their_connection(server_url: str, noise: bytes, greeting: bytes) -> None:
    host, _, port = server_url.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(greeting + noise)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                pass
