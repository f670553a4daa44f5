"""The servers behind an endpoint, each with a channel of its own: followed as they change, the least busy asked.

gRPC's own balancing takes turns whether a server is fast or slow, and looks a name up again only when a connection
breaks. Here servers take turns while they answer alike; one that is slow, or that failed, gets less until it recovers.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from affserve.client.wire.calls import is_transient
from affserve.client.wire.endpoint import Address, Endpoint, Resolver
from affserve.train.errors import ServerError

FOLLOW_S = 5.0  # from one look at the names to the next; a cluster's own names live as long
ALIKE = 1.5  # servers whose answers are expected within this ratio take turns
FORGET_S = 10.0  # what was measured counts half after this: a slow server is tried again
NEWS = 0.3  # weight of an answer in the mean
FIRST_REST_S, LONGEST_REST_S = 0.1, 2.0  # of a server that failed


@dataclass(eq=False)
class Server:
    """One server and what is known of it."""

    channel: triton.InferenceServerClient
    waiting: int = 0  # calls under way
    turn: int = 0  # when it was asked last
    failures: int = 0  # in a row
    rests_until_s: float = 0.0
    took: dict[str, tuple[float, float]] = field(default_factory=dict)  # by what was asked: mean time, measured when, s

    def expected_s(self, what: str, now_s: float) -> float | None:
        """Return how long an answer may take; None where that is not known."""
        if what not in self.took:
            return None
        mean_s, at_s = self.took[what]
        return float((self.waiting + 1) * mean_s * 0.5 ** ((now_s - at_s) / FORGET_S))

    def succeeded(self, what: str, took_s: float, now_s: float) -> None:
        """Learn from an answer."""
        mean_s = self.took[what][0] if what in self.took else took_s
        self.took[what] = (mean_s + NEWS * (took_s - mean_s), now_s)
        self.failures, self.rests_until_s = 0, 0.0

    def failed(self, now_s: float) -> None:
        """Learn from the lack of one."""
        self.rests_until_s = now_s + min(FIRST_REST_S * 2**self.failures, LONGEST_REST_S)
        self.failures = min(self.failures + 1, 30)


def choose(servers: list[Server], what: str, now_s: float) -> Server:
    """Return whom to ask: of those that are not resting and expected to answer alike, who was asked longest ago."""
    awake = [one for one in servers if one.rests_until_s <= now_s]
    if not awake:
        return min(servers, key=lambda one: one.rests_until_s)
    known = {one: s for one in awake if (s := one.expected_s(what, now_s)) is not None}
    hoped_s = min(known.values(), default=1.0)  # of a server that nothing is known of: as good as the best
    waits = {one: known.get(one, hoped_s * (one.waiting + 1)) for one in awake}
    return min((one for one in awake if waits[one] <= ALIKE * min(waits.values())), key=lambda one: one.turn)


class Servers:
    """Has the methods of tritonclient's InferenceServerClient, each call of which goes to the server of choice.

    One that is away is passed over at once, as long as there is another. For several threads.
    """

    def __init__(self, endpoint: Endpoint, resolve: Resolver) -> None:
        self._endpoint, self._resolve = endpoint, resolve
        self._servers: dict[Address, Server] = {}
        self._lock = threading.Lock()
        self._turns = itertools.count(1)
        self._closed = threading.Event()
        unknown = self.follow()
        if unknown and len(endpoint.addresses) > 1:
            raise ServerError(f"{unknown[0]} has no address: where several servers are named, each needs one")
        if endpoint.has_names:
            threading.Thread(target=self._keep_following, daemon=True, name="affserve-follow").start()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._ask, method)

    def follow(self) -> list[str]:
        """Look the names up, return those without an address; a server that is gone is asked no more."""
        wanted = self._endpoint.each(self._resolve)
        unknown = [one.host for one in wanted if one.is_name]
        with self._lock:
            # Where who answers for names is away, what was known is the best there is.
            if not self._closed.is_set() and not (self._servers and unknown):
                new = [one for one in wanted if one not in self._servers]
                made = {
                    one: Server(triton.InferenceServerClient(**one.client_options(self._endpoint.tls))) for one in new
                }
                # The channel of one that is gone closes itself when the last call or stream lets go of it.
                self._servers = {one: made.get(one) or self._servers[one] for one in wanted}
        return unknown

    def _keep_following(self) -> None:
        while not self._closed.wait(FOLLOW_S):
            self.follow()

    def for_stream(self) -> triton.InferenceServerClient:
        """Return the channel to one server, another one each time: a stream stays where its state is."""
        with self._lock:
            return self._take(list(self._servers.values()), "").channel

    def _take(self, servers: list[Server], what: str) -> Server:
        chosen = choose(servers, what, time.monotonic())
        chosen.turn = next(self._turns)
        return chosen

    def _ask(self, method: str, *given: Any, **named: Any) -> Any:
        what = str(named.get("model_name", method))
        asked: set[Server] = set()
        while True:
            with self._lock:
                left = [one for one in self._servers.values() if one not in asked]
                server = self._take(left or list(self._servers.values()), what)
                server.waiting += 1
            try:
                return self._ask_one(server, what, method, *given, **named)
            except InferenceServerException as error:
                asked.add(server)
                # Who did not answer in time took the time of the others, too.
                if len(left) < 2 or not is_transient(error) or "DEADLINE" in str(error.status()):
                    raise
            finally:
                with self._lock:
                    server.waiting -= 1

    def _ask_one(self, server: Server, what: str, method: str, *given: Any, **named: Any) -> Any:
        began_s = time.monotonic()
        try:
            answer = getattr(server.channel, method)(*given, **named)
        except InferenceServerException as error:
            if is_transient(error):
                with self._lock:
                    server.failed(time.monotonic())
            raise
        with self._lock:
            server.succeeded(what, (now_s := time.monotonic()) - began_s, now_s)
        return answer

    def close(self) -> None:
        """Close every channel; calls under way end with an error."""
        self._closed.set()
        with self._lock:
            for server in self._servers.values():
                server.channel.close()
