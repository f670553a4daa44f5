"""Several servers behind one name: who is asked, and that a rollout of all of them costs no request."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blurred_noise
from tiny_server import needs_wheel, wait_for

from affserve.client.client import AffectClient
from affserve.client.wire import servers
from affserve.client.wire.endpoint import addresses_of, parse_endpoint
from affserve.client.wire.servers import Server, choose
from affserve.export.server.config import ServerConfig
from affserve.export.server.security import CallerTls
from affserve.export.server.server import TritonServer
from affserve.train.windows import Outputs

FEATURES = np.random.default_rng(0).standard_normal((40, 512)).astype(np.float32)
FRAMES = blurred_noise(3)
TOLERANCE = 2e-5  # float32 sums in another order: batches differ


# --- who is asked ---


def play(took_s: list[float], calls: int, start_s: float = 0.0, known: list[Server] | None = None) -> list[int]:
    """Let servers that take so long answer one call after the other; return whom each call went to."""
    group = known or [Server(channel=k) for k in range(len(took_s))]
    now_s, asked = start_s, []
    for turn in range(calls):
        one = choose(group, "encoder", now_s)
        one.turn = turn + 1
        number = group.index(one)
        now_s += took_s[number]
        one.succeeded("encoder", took_s[number], now_s)
        asked.append(number)
    return asked


def test_servers_that_are_alike_take_turns() -> None:
    assert play([0.010, 0.012, 0.011], 9) == [0, 1, 2] * 3


def test_a_slow_server_is_seldom_asked_and_not_forgotten() -> None:
    asked = play([0.01, 0.08], 8000)
    assert asked[:2] == [0, 1], "nobody knows before it was tried"
    assert 2 <= asked.count(1) <= 10, "it is tried again when what was measured is old"


def test_calls_under_way_are_waited_for() -> None:
    group = [Server(channel=k) for k in range(2)]
    for one in group:
        one.succeeded("encoder", 0.01, 0.0)
    group[0].waiting = 3
    assert [choose(group, "encoder", 0.0).channel for _ in range(3)] == [1, 1, 1]
    group[1].waiting = 3
    assert choose(group, "encoder", 0.0).channel == 0
    assert choose(group, "head", 0.0).channel == 0, "of another model nothing is known"


def test_a_server_that_failed_rests_and_comes_back() -> None:
    group = [Server(channel=k) for k in range(2)]
    group[0].failed(now_s=0.0)
    assert choose(group, "encoder", 0.05).channel == 1
    group[1].failed(now_s=0.05)
    assert choose(group, "encoder", 0.06).channel == 0, "all are away: the one that rests no longer than the others"
    assert {choose(group, "encoder", 9.0).channel} == {0}
    for _ in range(60):
        group[0].failed(now_s=0.0)
    assert group[0].rests_until_s == servers.LONGEST_REST_S


# --- what a name stands for ---


def test_every_address_of_a_name_is_a_server_called_by_the_name(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    endpoint = parse_endpoint("affect.lab:8001", CallerTls(root=tmp_path / "ca.pem"))
    found = [one.client_options(endpoint.tls) for one in endpoint.each(lambda host: ["10.0.0.1", "[fd00::2]"])]
    assert [one["url"] for one in found] == ["ipv4:10.0.0.1:8001", "ipv6:[fd00::2]:8001"]
    for one in found:
        told = dict(one["channel_args"])
        assert told["grpc.ssl_target_name_override"] == "affect.lab"
        assert told["grpc.default_authority"] == "affect.lab:8001"
    assert not endpoint.is_one_server, "shared memory belongs to one"
    for fixed in ("127.0.0.1:1", "localhost:1", "[::1]:1", "10.0.0.7:1", "unix:/tmp/x:1"):
        assert parse_endpoint(fixed).is_one_server, fixed
    assert "127.0.0.1" in addresses_of("localhost")


def test_a_name_that_cannot_be_looked_up_is_left_to_grpc() -> None:
    def lost(host: str) -> list[str]:
        raise OSError("no such name")

    (one,) = parse_endpoint("affect.lab:8001").each(lost)
    assert one.client_options()["url"] == "affect.lab:8001"


# --- a rollout ---


class Load:
    """Callers that never pause, and what went wrong for them."""

    def __init__(self, client: AffectClient) -> None:
        self.asks: dict[str, Callable[[], Outputs]] = {
            "encode": lambda: {"features": client.encode(FRAMES)},
            "predict": lambda: client.predict(FEATURES),
            "stream": lambda: self.streamed(client),
        }
        self.expected = {name: ask() for name, ask in self.asks.items()}
        self.answers, self.wrong = itertools.count(), list[str]()
        self.stop = threading.Event()

    @staticmethod
    def streamed(client: AffectClient) -> Outputs:
        sequence = client.sequence()
        parts = [*sequence.push(FEATURES[:20]), *sequence.push(FEATURES[20:]), *sequence.finish()]
        return {task: np.concatenate([part[task] for part in parts]) for task in parts[0]}

    def run(self, name: str) -> None:
        while not self.stop.is_set():
            try:
                found = self.asks[name]()
            except Exception as error:  # noqa: BLE001 - the test is that there is none
                self.wrong.append(f"{name}: {error!r}")
                continue
            for task, values in self.expected[name].items():
                if np.abs(found[task] - values).max() > TOLERANCE * np.abs(values).max():
                    self.wrong.append(f"{name}: {task} differs")
            next(self.answers)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.run, args=(name,)) for name in self.asks]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


def answered(server: TritonServer, model: str = "clip_encoder") -> int:
    with server.prober() as prober:
        return next(one.succeeded for one in prober.statistics(10.0) if one.name == model)


@needs_wheel
def test_a_rolling_restart_behind_one_name_costs_no_request(
    stream_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "FOLLOW_S", 0.05)
    behind = {"affect.test": ["127.0.0.1"]}

    def started(host: str, port: int) -> Any:
        server = TritonServer(ServerConfig(repository=stream_repository, host=host, grpc_port=port, threads=1))
        server.start()
        stack.callback(server.kill)
        return server

    with contextlib.ExitStack() as stack:
        first = started("127.0.0.1", 0)
        port = first.config.grpc_port
        client = stack.enter_context(AffectClient(f"affect.test:{port}", resolve=behind.__getitem__))
        load = Load(client)
        with load.on():
            second = started("127.0.0.2", port)
            at_start = {model: answered(second, model) for model in ("clip_encoder", "temporal_stream")}
            behind["affect.test"] = ["127.0.0.1", "127.0.0.2"]
            for model, before in at_start.items():  # a server that the name has got since is asked, for streams, too
                wait_for(lambda model=model, before=before: answered(second, model) > before)  # type: ignore[misc]
            for server in (first, second):
                server.stop()
                again = started(server.config.host, port)
                before = answered(again)
                wait_for(lambda again=again, before=before: answered(again) > before)  # type: ignore[misc]
            behind["affect.test"] = ["127.0.0.2"]  # the name loses a server, whose calls under way go on
            count = next(load.answers)
            wait_for(lambda: next(load.answers) > count + 20)
        assert load.wrong == []
