"""Requests to a server, and which errors are worth another attempt.

Every request is a pure function of its inputs, so repeating one never changes a result. Repeated is exactly what
another attempt can cure: a server that is away or does not answer in time, a model that is being replaced, a dead
Python process that the supervisor is about to notice. Everything else is an answer.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from affserve.export.contract import ModelSpec
from affserve.train.errors import InferenceError

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
TRANSIENT_STATUS = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
RESTRICTED = "protocol is restricted"  # Triton's refusal for good, which it gives as UNAVAILABLE, too
MODEL_AWAY = "no available versions"  # with NOT_FOUND: a model that is being unloaded or not loaded yet
DEAD_PROCESS = ("Stub process", "is not healthy")  # both: a model whose Python process has died


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Deadlines; a call has ended after retry_for_s + timeout_s at the latest."""

    timeout_s: float = 30.0  # of one attempt
    retry_for_s: float = 60.0  # no attempt begins later than this after the first

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.retry_for_s < 0:
            raise ValueError(
                f"timeout_s is {self.timeout_s:g}, retry_for_s is {self.retry_for_s:g}; expected more than 0 s and at "
                "least 0 s"
            )


class Calls:
    """The calls of one client, for several threads; `triton` asks once, `repeated` and `infer` as the policy says."""

    def __init__(self, url: str, channel: triton.InferenceServerClient, policy: RetryPolicy) -> None:
        self.url = url
        self.triton = channel
        self.closing = threading.Event()  # once set, nothing is repeated any more
        self._policy = policy

    def infer(self, model: ModelSpec, tensor: triton.InferInput, asked: str) -> triton.InferResult:
        """Have a model with one input answer."""
        return self.repeated(asked, self.triton.infer, model_name=model.name, inputs=[tensor])

    def repeated(self, asked: str, request: Callable[..., Any], **arguments: Any) -> Any:
        """Request until it succeeds; InferenceError for an error that lasts. asked: who is asked what, for messages."""
        last_start_s = time.monotonic() + self._policy.retry_for_s
        pauses = pauses_s()
        while True:
            try:
                return request(**arguments, client_timeout=self._policy.timeout_s)
            except InferenceServerException as error:
                if not is_transient(error):
                    raise InferenceError(f"{asked}: {told(error)}") from error
                pause_s = next(pauses)
                if time.monotonic() + pause_s > last_start_s:
                    raise InferenceError(f"{asked}: {told(error)}; tried for {self._policy.retry_for_s:g} s") from error
            if self.closing.wait(pause_s):
                raise InferenceError(f"the connection to {self.url} was closed while a call was being repeated")


def pauses_s() -> Iterator[float]:
    """Yield pauses between attempts: exponential, and anywhere below, so that many clients do not return at once."""
    longest_s = FIRST_PAUSE_S
    while True:
        yield random.uniform(0, longest_s)
        longest_s = min(2 * longest_s, LONGEST_PAUSE_S)


def is_transient(error: InferenceServerException) -> bool:
    """Say whether the same request may succeed later."""
    status, message = error.status(), error.message() or ""
    return (
        (status in TRANSIENT_STATUS and RESTRICTED not in message)
        or (status == "StatusCode.NOT_FOUND" and MODEL_AWAY in message)
        or all(sign in message for sign in DEAD_PROCESS)
    )


def told(error: InferenceServerException) -> str:
    """Return what the server, or gRPC in its place, has said."""
    status = (error.status() or "").removeprefix("StatusCode.")
    return f"the server answered {status}: {error.message()}" if status else str(error.message())
