"""The peers: each really runs, each answers what our server answers, and each is used at its best."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import blurred_noise
from tiny_server import wait_for

from affserve.benchmarks.measuring.random_models import Checkpoints
from affserve.benchmarks.peers.answers import compare_answers
from affserve.benchmarks.peers.comparison import PeerOptions, at_its_best
from affserve.benchmarks.peers.environment import SITE, PeerSettings, peer_server
from affserve.benchmarks.peers.systems import INFORMED, System, naive_service, plain_script
from affserve.client.client import AffectClient
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.export.machine.ports import listening
from affserve.export.precision.tolerances import Precision
from affserve.train.errors import ServerError
from affserve.train.windows import Outputs

PROJECT = Path(__file__).parents[2]
FRAMES = 48
needs_peers = pytest.mark.skipif(
    not (PROJECT / SITE / "fastapi").is_dir(), reason="affserve bench peers installs the peers once"
)


@pytest.fixture(scope="module")
def settings(checkpoints: tuple[Path, Path]) -> PeerSettings:
    encoder, head = checkpoints
    found = Checkpoints(encoder=encoder, head=head, weights="random")
    return PeerSettings(checkpoints=found, threads=1, site=PROJECT / SITE)


@pytest.fixture(scope="module")
def served(client: AffectClient) -> Outputs:
    return client.predict(client.encode(blurred_noise(FRAMES)))


def test_the_plain_script_answers_as_our_server(settings: PeerSettings, served: Outputs) -> None:
    with plain_script(settings) as script:
        answer = script.answer(blurred_noise(FRAMES), 1)
    told = compare_answers(answer, served, Precision.FP32)
    assert told["equal"], told


@needs_peers
def test_the_naive_service_answers_as_our_server(settings: PeerSettings, served: Outputs) -> None:
    with naive_service(settings, 1) as service:
        answers = [service.answer(blurred_noise(FRAMES), in_flight) for in_flight in (1, 2)]
    for answer in answers:
        told = compare_answers(answer, served, Precision.FP32)
        assert told["equal"], told


@needs_peers
@pytest.mark.parametrize("engine", [ONNX_RUNTIME, OPENVINO])
def test_the_informed_services_answer_as_our_server(settings: PeerSettings, served: Outputs, engine: str) -> None:
    with naive_service(replace(settings, engine=engine), 1) as service:
        assert service.name == INFORMED[engine]
        told = compare_answers(service.answer(blurred_noise(FRAMES), 1), served, Precision.FP32)
    assert told["equal"], told


def test_a_peer_that_does_not_start_shows_its_log(settings: PeerSettings) -> None:
    with pytest.raises(ServerError, match=r"No module named affserve\.benchmarks\.nobody"):
        peer_server("affserve.benchmarks.nobody", settings, []).__enter__()


@needs_peers
def test_a_peer_ends_with_a_benchmark_that_is_killed(settings: PeerSettings) -> None:
    code = "import sys; sys.path += sys.argv[3:]; from test_peers import hold; hold(*sys.argv[1:3])"
    paths = [settings.checkpoints.encoder, settings.checkpoints.head, Path(__file__).parent, Path(__file__).parents[1]]
    command = [sys.executable, "-c", code, *map(str, paths)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        assert listening("127.0.0.1", port)
        holder.kill()
    wait_for(lambda: not listening("127.0.0.1", port))


def hold(encoder: str, head: str) -> None:
    """Run the naive service until somebody kills this process."""
    found = Checkpoints(encoder=Path(encoder), head=Path(head), weights="random")
    settings = PeerSettings(checkpoints=found, threads=1, site=PROJECT / SITE)
    with peer_server("affserve.benchmarks.peers.naive", settings, [1]) as port:
        print(port, flush=True)
        signal.pause()


def outputs(shift: float) -> Outputs:
    values = np.sin(np.arange(600, dtype=np.float32) / 40).reshape(300, 2)
    return {"valence_arousal": values + np.float32(shift)}


@pytest.mark.parametrize(
    ("precision", "shift", "equal"),
    [
        (Precision.FP32, 5e-5, True),
        (Precision.FP32, 5e-4, False),
        (Precision.INT8, 0.05, True),
        (Precision.INT8, 0.3, False),
    ],
    ids=["fp32-rounding", "fp32-wrong", "int8-rounding", "int8-wrong"],
)
def test_answers_are_equal_within_the_tolerance_of_their_precision(
    precision: Precision, shift: float, equal: bool
) -> None:
    assert compare_answers(outputs(0), outputs(shift), precision)["equal"] is equal


def test_an_answer_without_a_task_is_not_equal() -> None:
    assert not compare_answers(outputs(0), {}, Precision.INT8)["equal"]


class Clock:
    """A clock that goes on when it is told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def candidate(settings: str, answer_s: float, running: list[str], clock: Clock) -> Iterator[System]:
    def answer(_frames: object, in_flight: int) -> Outputs:
        clock.now_s += answer_s / in_flight
        return {}

    running.append(settings)
    yield System(name="peer", settings=settings, answer=answer)
    running.remove(settings)


def test_each_system_is_compared_at_the_fastest_of_its_settings() -> None:
    running: list[str] = []
    clock = Clock()
    tried = [candidate(name, answer_s, running, clock) for name, answer_s in (("slow", 8), ("fast", 2), ("slower", 12))]
    with at_its_best("peer", tried, np.empty((32, 224, 224, 3), np.uint8), lambda _: None, clock=clock) as chosen:
        assert (chosen.system.settings, chosen.in_flight) == ("fast", 4)
        assert running == ["fast"]
        assert len(chosen.trials) == 9
    assert running == []


def test_a_job_is_one_window_at_most() -> None:
    with pytest.raises(ServerError, match="frames is 301"):
        PeerOptions(frames=301)
