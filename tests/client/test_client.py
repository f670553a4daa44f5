"""The client and the pipeline against a real Triton server."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import trustme
from clips import write_crops
from conftest import blurred_noise
from numpy.typing import NDArray
from PIL import Image
from tiny_server import wait_for
from tritonclient.utils import InferenceServerException

from affserve.client import AffectClient, analyze
from affserve.client.wire.calls import LONGEST_PAUSE_S, is_transient, pauses_s
from affserve.export.contract import CHUNK_FRAMES
from affserve.export.machine.processes import children_of
from affserve.export.server.config import ServerConfig
from affserve.export.server.installation import find_installation, lay_out_backends, server_environment
from affserve.export.server.security import CallerTls, ServerTls
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import InferenceError, ServerError
from affserve.train.labels import TASKS
from affserve.train.windows import OverlapMerger

TOLERANCE = 2e-5  # float32 sums in another order: chunks and batches differ


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return blurred_noise(70)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_describe_tells_tasks_in_the_projects_order(client: AffectClient) -> None:
    description = client.describe()

    assert list(description.labels.items()) == [(task.key, task.names) for task in TASKS.values()]
    assert description.trained_on == "synthetic"
    assert "Triton" in client.engine()


def test_encode_keeps_order_over_chunks(client: AffectClient, frames: NDArray[np.uint8]) -> None:
    one_by_one = np.concatenate([client.encode(frames[k : k + 1]) for k in range(len(frames))])

    features = client.encode(frames)

    assert features.shape == (70, 512)
    assert np.abs(features - one_by_one).max() < TOLERANCE * np.abs(features).max()
    assert np.abs(features[0] - features[1]).max() > 100 * TOLERANCE  # the frames can be told apart
    features += 1  # the array is the caller's own


def test_stream_gives_one_array_per_chunk_and_reads_no_further_than_needed(
    client: AffectClient, frames: NDArray[np.uint8]
) -> None:
    taken: list[int] = []

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for k, size in enumerate((3, 0, 1, 4, 2)):
            taken.append(k)
            yield frames[k : k + size]

    stream = client.encode_stream(chunks())
    first = next(stream)

    assert taken == [0, 1]
    assert [len(features) for features in (first, *stream)] == [3, 0, 1, 4, 2]


def test_no_frames_are_no_features(client: AffectClient) -> None:
    assert client.encode(np.empty((0, 224, 224, 3), dtype=np.uint8)).shape == (0, 512)


def test_ensemble_says_the_same_as_its_two_steps(client: AffectClient, frames: NDArray[np.uint8]) -> None:
    two_steps = client.predict(client.encode(frames[:40]))
    at_once = client.affect(frames[:40])

    for task, values in at_once.items():
        assert values.shape == (40, TASKS[task].outputs)
        assert values.dtype == np.float32
        assert np.abs(values - two_steps[task]).max() < 1e-4
    assert at_once["expression"].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_whole_window_of_frames_fits_one_message(client: AffectClient) -> None:
    outputs = client.affect(np.zeros((300, 224, 224, 3), dtype=np.uint8))  # 45 MB; gRPC alone would refuse 4 MB

    assert outputs["valence_arousal"].shape == (300, 2)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((32, 768), dtype=np.float32), r"\(32, 768\) float32"),
        (np.zeros((32, 512)), r"\(32, 512\) float64"),
        (np.zeros(512, dtype=np.float32), r"\(512,\) float32"),
    ],
    ids=["width", "type", "axes"],
)
def test_wrong_features_are_refused_here(client: AffectClient, array: NDArray[np.float32], found: str) -> None:
    with pytest.raises(InferenceError, match=rf"temporal_head on .* expects features \(-1, 512\) float32, got {found}"):
        client.predict(array)


def test_chunks_of_any_size_travel_in_messages_of_32(client: AffectClient, frames: NDArray[np.uint8]) -> None:
    """A chunk of a crowd is larger than what one request may hold."""
    whole = client.encode(frames)

    by_chunk = list(client.encode_stream([frames[:65], frames[65:]]))

    assert [len(features) for features in by_chunk] == [65, 5]
    assert np.abs(np.concatenate(by_chunk) - whole).max() < TOLERANCE * np.abs(whole).max()


def test_crops_of_a_whole_video_are_merged_over_its_windows(client: AffectClient, frames: NDArray[np.uint8]) -> None:
    crops = np.concatenate([frames] * 5)  # 350 frames: segments of 300 and 150
    features = client.encode(crops)
    described = client.describe()
    merger = OverlapMerger(client.predict, described.window_frames, described.stride_frames)
    parts = [*merger.push(features), *merger.finish()]

    for task, values in client.analyze(crops).items():
        np.testing.assert_array_equal(values, np.concatenate([part[task] for part in parts]))
    assert client.analyze(crops[:0])["expression"].shape == (0, 8)


def test_a_list_of_frames_or_pictures_is_what_their_array_is(client: AffectClient, frames: NDArray[np.uint8]) -> None:
    expected = client.analyze(frames[:3])
    pictures = [Image.fromarray(frame) for frame in frames[:3]]

    for given in (list(frames[:3]), pictures):
        for task, values in client.analyze(given).items():
            np.testing.assert_array_equal(values, expected[task])
            assert values.dtype == np.float32
    assert client.encode([]).shape == (0, 512)


FRAME = np.zeros((224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((1, 112, 112, 3), np.uint8), r"expects frames \(-1, 224, 224, 3\) uint8, got \(1, 112, 112, 3\)"),
        (FRAME, r"one frame \(224, 224, 3\): call with frames\[None\]"),
        (Image.fromarray(FRAME), r"one image: call with \[image\]"),
        ("talk.mp4", r"the path 'talk.mp4': from affserve.client import analyze"),
        (Path("talk.mp4"), r"the path 'talk.mp4': from affserve.client import analyze"),
        ((one for one in (FRAME,)), r"a generator: call with list\(frames\), or encode_stream"),
        ([FRAME, FRAME[:112]], r"item 1 of the list is \(112, 224, 3\) uint8"),
        ([FRAME, None], r"item 1 of the list is a NoneType"),
        (7, r"frames are face crops: .*; got a int"),
    ],
    ids=["size", "one_frame", "one_image", "text", "path", "generator", "mixed", "none", "number"],
)
def test_other_things_than_frames_are_named(client: AffectClient, given: Any, told: str) -> None:
    for call in (client.encode, client.analyze):
        with pytest.raises(InferenceError, match=told):
            call(given)


def test_a_client_without_with_connects_by_itself_and_says_when_it_is_closed(server_url: str) -> None:
    client = AffectClient(server_url)
    assert client.encode([FRAME]).shape == (1, 512)
    assert client.transport == "shm"
    client.close()

    for call in (client.describe, client.engine, lambda: client.encode([FRAME]), lambda: client.affect([FRAME])):
        with pytest.raises(ServerError, match="is closed: make a new AffectClient"):
            call()


def test_a_video_becomes_columns_as_its_result_file_has_them(client: AffectClient, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", [1, 2, 5])
    table = analyze(crops, client)

    assert table["frame"].tolist() == [1, 2, 5]
    assert table["valence"].dtype == np.float32
    assert set(table["expression"]) <= set(TASKS["expression"].names)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "infinity"])
def test_features_that_are_no_numbers_are_refused_here(client: AffectClient, value: float) -> None:
    """Triton passes them on, and attention spreads one of them over the whole window."""
    features = np.zeros((40, 512), dtype=np.float32)
    features[[7, 9], 3] = value

    with pytest.raises(InferenceError, match=r"2 of 40 frames have features that are not numbers.*frame 7"):
        client.predict(features)


@pytest.mark.parametrize("count", [0, 1, CHUNK_FRAMES, CHUNK_FRAMES + 1, 2 * CHUNK_FRAMES])
def test_a_chunk_of_any_length_is_answered_whole(client: AffectClient, count: int) -> None:
    chunks = [np.zeros((count, 224, 224, 3), np.uint8), np.zeros((1, 224, 224, 3), np.uint8)]
    assert [len(features) for features in client.encode_stream(iter(chunks))] == [count, 1]


def test_servers_own_refusal_is_passed_on_at_once(client: AffectClient) -> None:
    with pytest.raises(InferenceError) as raised:
        client.predict(np.empty((0, 512), dtype=np.float32))

    assert "tried for" not in str(raised.value)
    assert "temporal_head on 127.0.0.1:" in str(raised.value)
    assert "sent features (0, 512) float32" in str(raised.value)


def test_nobody_listening_is_said_without_trying_again() -> None:
    url = f"127.0.0.1:{free_port()}"
    for call in (AffectClient(url).connect, AffectClient(url).describe, lambda: AffectClient(url).encode([FRAME])):
        with pytest.raises(ServerError, match=rf"no server at {url} .*start one with: affserve serve") as raised:
            call()
        assert "tried for" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8001", "localhost", ":8001", "a:0", "a:b", "127.0.0.1:8001,", "127.0.0.1:8001,b"]
)
def test_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match="expected HOST:PORT"):
        AffectClient(url)


def test_server_with_other_models_is_refused(tmp_path: Path) -> None:
    """A Triton that serves an empty repository is a server, but not ours."""
    (tmp_path / "models").mkdir()
    (tmp_path / "work").mkdir()
    installation = find_installation()
    port = free_port()
    command = [str(installation.binary), f"--model-repository={tmp_path / 'models'}", f"--grpc-port={port}"]
    command += ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
    backends = lay_out_backends(installation, tmp_path / "work")
    command += [f"--backend-directory={backends}"] if backends else []
    environment = server_environment(installation, tmp_path / "work")
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_listening(port)
            with AffectClient(f"127.0.0.1:{port}") as client, pytest.raises(InferenceError) as raised:
                client.describe()
            with pytest.raises(ServerError, match="does not serve clip_encoder_jpeg"):
                AffectClient(f"127.0.0.1:{port}", transport="jpeg").connect()
        finally:
            process.terminate()
    assert "temporal_head" in str(raised.value)
    assert "not found" in str(raised.value)


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the server did not start listening within 120 s")


def test_server_that_stays_away_is_given_up_after_the_time(repository: Path) -> None:
    with TritonServer(ServerConfig(repository=repository)) as server:
        client = AffectClient(server.grpc_url, retry_for_s=2)
        client.connect()
        client.describe()

    with pytest.raises(InferenceError, match="tried for 2 s"):
        client.encode(np.zeros((1, 224, 224, 3), dtype=np.uint8))
    client.close()


# --- what is repeated ---


@pytest.mark.parametrize(
    ("status", "message", "repeated"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", True),
        ("NOT_FOUND", "Request for unknown model: 'clip_encoder' has no available versions", True),
        ("INTERNAL", "Failed to process the request(s), message: Stub process 'x' is not healthy.", True),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'affserve'", False),
        ("NOT_FOUND", "Request for unknown model: 'clip_encoder' is not found", False),
        ("INTERNAL", "the model is not healthy", False),
        ("INVALID_ARGUMENT", "unexpected shape", False),
        ("CANCELLED", "Channel closed!", False),
        ("RESOURCE_EXHAUSTED", "too large", False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_exactly_what_may_succeed_later_is_repeated(status: str, message: str, repeated: bool) -> None:
    assert is_transient(InferenceServerException(message, status=f"StatusCode.{status}")) is repeated


def test_pauses_grow_and_are_spread_over_all_their_length() -> None:
    random.seed(0)
    runs = np.array([list(itertools.islice(pauses_s(), 12)) for _ in range(400)])  # s

    longest = runs.max(axis=0)
    assert longest == pytest.approx([min(0.1 * 2**k, LONGEST_PAUSE_S) for k in range(12)], rel=0.05)
    assert runs.mean(axis=0) == pytest.approx(longest / 2, rel=0.15)


@pytest.mark.parametrize("transport", ["auto", "raw"])
def test_killed_servers_and_processes_cost_time_and_no_frame(repository: Path, transport: str) -> None:
    """Two kills each, at moments of the stream fixed by a seed; `affserve bench faults` does many of them."""
    frames = blurred_noise(128)
    chance = random.Random(transport)
    config = ServerConfig(repository=repository, drain_timeout_s=0)
    with (
        SupervisedServer(config, on_event=lambda _: None) as server,
        AffectClient(server.grpc_url, transport=transport) as client,
    ):
        expected = client.encode(frames)
        for victim in ("server", "stub"):
            at_chunk = chance.randrange(1, 4)
            stream = client.encode_stream(frames[k : k + 32] for k in range(0, 128, 32))
            found = []
            for number, features in enumerate(stream, start=1):
                found.append(features)
                if number == at_chunk:
                    pids = [server.pid] if victim == "server" else list(children_of(server.pid))
                    for pid in pids:
                        os.kill(pid, signal.SIGKILL)
            np.testing.assert_array_equal(np.concatenate(found), expected)
            np.testing.assert_array_equal(client.encode(frames[:32]), expected[:32])
        assert client.transport == ("shm" if transport == "auto" else "raw")


# --- encryption ---


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for a server on 127.0.0.1, for a client, and of an authority that vouches for neither."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "other-ca.pem"))
    for name, issued in (
        ("server", ours.issue_cert("127.0.0.1", "affect.test")),
        ("client", ours.issue_cert("someone@affect.test")),
        ("stranger", other.issue_cert("someone@affect.test")),
    ):
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(folder / f"{name}.pem"), append=True)
    return folder


@pytest.fixture(scope="module")
def encrypted_url(repository: Path, authority: Path) -> Iterator[str]:
    """A server that speaks TLS and asks callers who they are."""
    tls = ServerTls(certificate=authority / "server.pem", key=authority / "server.key", client_ca=authority / "ca.pem")
    with TritonServer(ServerConfig(repository=repository, tls=tls, drain_timeout_s=0)) as server:
        yield server.grpc_url


def caller(authority: Path, name: str | None, ca: str = "ca") -> CallerTls:
    own = {"certificate": authority / f"{name}.pem", "key": authority / f"{name}.key"} if name else {}
    return CallerTls(root=authority / f"{ca}.pem", **own)


def test_a_client_with_a_certificate_is_served_encrypted(encrypted_url: str, authority: Path) -> None:
    with AffectClient(encrypted_url, tls=caller(authority, "client")) as client:
        assert client.encode(blurred_noise(3)).shape == (3, 512)


def test_several_encrypted_servers_are_checked_for_the_name_given(encrypted_url: str, authority: Path) -> None:
    own = caller(authority, "client")
    named = CallerTls(root=own.root, certificate=own.certificate, key=own.key, server_name="affect.test")
    with AffectClient(f"{encrypted_url},{encrypted_url}", tls=named) as client:
        assert client.encode(blurred_noise(1)).shape == (1, 512)


@pytest.mark.parametrize(
    ("name", "ca"),
    [(None, "ca"), ("stranger", "ca"), ("client", "other-ca")],
    ids=["no_certificate", "certificate_of_another_authority", "server_not_trusted"],
)
def test_who_cannot_be_trusted_is_not_connected(encrypted_url: str, authority: Path, name: str | None, ca: str) -> None:
    with pytest.raises(ServerError, match=f"no server at {encrypted_url}"):
        AffectClient(encrypted_url, tls=caller(authority, name, ca)).connect()


def test_the_wrong_protocol_is_named(encrypted_url: str, server_url: str, authority: Path) -> None:
    with pytest.raises(ServerError, match=rf"no server at {encrypted_url}.*TLS is spoken there: --tls, with --tls-ca"):
        AffectClient(encrypted_url).connect()
    with pytest.raises(ServerError, match="gRPC is spoken there without TLS: leave the --tls options out"):
        AffectClient(server_url, tls=caller(authority, None)).connect()
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        with pytest.raises(ServerError, match="HTTP is spoken there: give the gRPC port"):
            AffectClient(f"127.0.0.1:{server.server_port}").connect()
        server.shutdown()


def test_a_missing_certificate_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"ca\.pem is not a file"):
        AffectClient("127.0.0.1:1", tls=CallerTls(root=tmp_path / "ca.pem"))


# --- several servers ---


def answered(url: str) -> int:
    with triton.InferenceServerClient(url) as asking:
        return int(asking.get_inference_statistics("clip_encoder").model_stats[0].inference_stats.success.count)


def test_two_servers_take_turns_and_one_goes_on_alone(repository: Path, server_url: str) -> None:
    frames = blurred_noise(32)
    parts = [frames[k : k + 4] for k in range(0, 32, 4)]
    with TritonServer(ServerConfig(repository=repository, drain_timeout_s=0)) as other:
        url = f"localhost:{server_url.rpartition(':')[2]},{other.grpc_url}"
        with AffectClient(url) as client:
            assert client.transport == "raw"  # a region of shared memory belongs to one server
            before = [answered(server_url), answered(other.grpc_url)]
            expected = list(client.encode_stream(parts))
            wait_for(lambda: answered(server_url) + answered(other.grpc_url) == sum(before) + 8)
            shares = np.subtract([answered(server_url), answered(other.grpc_url)], before)
            assert shares.min() >= 1

            kill = threading.Timer(0.05, os.kill, (other.pid, signal.SIGKILL))
            kill.start()
            found = list(client.encode_stream(parts * 3))
            kill.join()
            assert len(found) == 24
            for features, alone in zip(found, expected * 3, strict=True):
                np.testing.assert_allclose(features, alone, rtol=0, atol=TOLERANCE * np.abs(alone).max())
            assert other.exit_code is not None
            assert client.encode(frames[:1]).shape == (1, 512)


def test_a_name_without_an_address_is_told() -> None:
    with pytest.raises(ServerError, match=r"nowhere\.invalid has no address"):
        AffectClient("127.0.0.1:1,nowhere.invalid:2")
