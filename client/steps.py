"""What a call to the service consists of, without saying how it is carried out.

A call is a generator: it yields what is to be done next (a request, a pause, work for the processor), is sent the
answer or thrown the server's error, and returns its result. What is sent, checked, repeated and given up is thus
written once; client.py carries steps out in threads, async_client.py in an event loop, in about ten lines each.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rpc:
    """One attempt at one request; answered with tritonclient's result or its InferenceServerException."""

    method: str  # of tritonclient's InferenceServerClient, blocking or asyncio: they have the same
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Nothing for a while; the client may be closed meanwhile."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Milliseconds of processor time that an event loop should not spend itself."""

    run: Callable[[], Any]


Step = Rpc | Pause | Work
Steps = Generator[Step, Any, T]
