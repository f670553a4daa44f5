"""What bad requests do to a running server: every one is to be answered with an error, and nothing is to stay behind.

Requests are drawn from a fixed seed and sent one after the other. Before, between and after, the server answers good
ones; its memory is compared after a warm-up, in which allocators take what they keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from affserve.benchmarks.measuring.processes import anonymous_kib, children
from affserve.benchmarks.serving.bad_inference import INFERENCE_KINDS, Random, Send, Server, pick
from affserve.benchmarks.serving.bad_protocol import PROTOCOL_KINDS, REGION, SHARED_MEMORY
from affserve.client.client import AffectClient
from affserve.export.contract import FRAMES
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.windows import Outputs

KINDS = {**INFERENCE_KINDS, **PROTOCOL_KINDS}
GROWTH_LIMIT_KIB = 8 << 10  # resident memory goes up and down by a few MiB without any requests, too
LEAK_SIGNS = ("/usr", "/tmp", "/home", "site-packages", ".py", "Traceback")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a server holds."""

    rss_kib: int  # resident memory of tritonserver and its stubs, without files and shared memory
    processes: int
    shm_files: int  # its own in /dev/shm, and those of bad requests
    shm_bytes: int


@dataclass(kw_only=True)
class Tally:
    """What became of the requests."""

    sent: int = 0
    refused: int = 0  # answered with an error, or hung up on where the bytes were no message
    accepted: list[str] = field(
        default_factory=list
    )  # kinds of requests that were answered as if they were good, or not at all
    leaks: list[str] = field(default_factory=list)  # answers that tell of the server's files
    slowest_s: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)


def draw(rng: Random, server: Server) -> tuple[str, Send]:
    """Return a bad request of a random kind, and the name of the kind."""
    name = pick(rng, sorted(KINDS))
    return name, KINDS[name](rng, server)


def send_bad_requests(server: Server, count: int, rng: Random) -> Tally:
    """Send so many bad requests, one after the other."""
    tally = Tally()
    for _ in range(count):
        name, send = draw(rng, server)
        began_s = time.perf_counter()
        answer = send(server)
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began_s)
        tally.sent += 1
        tally.by_kind[name] = tally.by_kind.get(name, 0) + 1
        tally.refused += answer is not None
        if answer is None:
            tally.accepted.append(name)
        elif any(sign in answer.replace("/etc/passwd", "") for sign in LEAK_SIGNS):
            tally.leaks.append(f"{name}: {answer}")
    return tally


def footprint(pid: int) -> Footprint:
    """Measure the server whose tritonserver is process `pid`."""
    family = [pid, *children(pid)]
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    own = next(word.partition("=")[2] for word in words if word.startswith("--id="))  # its shared memory begins so
    files = [file for prefix in (own, REGION) for file in SHARED_MEMORY.glob(f"{prefix}*")]
    return Footprint(
        rss_kib=sum(anonymous_kib(one) for one in family),
        processes=len(family),
        shm_files=len(files),
        shm_bytes=sum(file.stat().st_blocks * 512 for file in files),
    )


def measure_bad_requests(repository: Path, count: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Send `count` bad requests to a server of its own and return what became of them and of the server."""
    with TritonServer(ServerConfig(repository=repository, drain_timeout_s=0)) as server:
        target = Server(grpc_url=server.grpc_url, http_url=server.http_url, models=server.models)
        rng = np.random.default_rng(seed)
        with AffectClient(server.grpc_url) as client:
            frames = rng.integers(0, 256, (40, *FRAMES.shape), dtype=np.uint8)
            expected = client.affect(frames)
            warm_up = send_bad_requests(target, max(1, count // 5), rng)
            before = footprint(server.pid)
            tell(f"{warm_up.sent} sent to warm up")
            tally = send_bad_requests(target, count, rng)
            after = footprint(server.pid)
            same = identical(expected, client.affect(frames))
        died = server.exit_code is not None
    growth_kib = after.rss_kib - before.rss_kib
    sound = tally.refused == tally.sent and not warm_up.accepted and not tally.leaks and same and not died
    return {
        "unharmed": sound and growth_kib < GROWTH_LIMIT_KIB and after.shm_bytes <= before.shm_bytes,
        "seed": seed,
        **asdict(tally),
        "accepted_in_warm_up": warm_up.accepted,
        "server_died": died,
        "same_answers_afterwards": same,
        "before": asdict(before),
        "after": asdict(after),
        "rss_growth_kib": growth_kib,
    }


def identical(one: Outputs, other: Outputs) -> bool:
    """Say whether two answers are the same to the last bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
