"""Features of one person in order in, answers in the same order out, through a head that remembers.

The server keeps the state. Where it is not certain what the server knows (it was restarted, the stream was silent for
too long, an answer got lost), the stream is started anew from the features kept here, as many as the head can see back:
the answers are those of a stream that nothing happened to.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.wire.answers import check_finite, checked_input, output
from affserve.client.wire.calls import Calls
from affserve.client.wire.messages import raw_tensor
from affserve.export.contract import FEATURES, TEMPORAL_STREAM, HeadDescription
from affserve.train.errors import InferenceError
from affserve.train.windows import Outputs

UNKNOWN = "must specify the START flag"  # Triton's refusal of a stream that it does not know

END_TIMEOUT_S = 2.0

Features = NDArray[np.float32]


class HeadStream:
    """One stream; push and finish are those of `OverlapMerger`.

    An error that lasts is raised and loses nothing: the next push answers the frames of this one, too.
    """

    def __init__(
        self, calls: Calls, server: Callable[[], triton.InferenceServerClient], description: HeadDescription
    ) -> None:
        """server: returns the channel to a server that a stream may start on, the next one each time."""
        if description.stream is None:
            raise InferenceError(f"the head on {calls.url} answers whole segments only; expected one that streams")
        self._calls = calls
        self._next_server = server
        self._labels = description.labels
        self._longest = description.window_frames  # frames in one message
        self._reach = description.stream.reach_frames
        self._late = description.stream.lookahead_frames
        self._ahead = self._late  # answers still to come that are about frames before the first
        self._server: triton.InferenceServerClient | None = None  # None: no server knows this stream
        self._number = 0
        self._ending = False
        self._kept: deque[Features] = deque()  # what the server has seen, the last `reach` frames or a few more
        self._waiting: deque[Features] = deque()  # what has no answer yet

    def push(self, features: Features) -> Iterator[Outputs]:
        """Take the next features (N, 512); yield the answers (n, K) that are ready, those of the last L not yet."""
        check_finite(features, checked_input(TEMPORAL_STREAM, self._calls.url, features))
        self._wait(features)
        yield from self._answered()

    def finish(self) -> Iterator[Outputs]:
        """Yield the last answers and end the stream: its last frame is held for as long as they are late."""
        held = next((part[-1:] for parts in (self._waiting, self._kept) for part in reversed(parts)), None)
        if held is not None and not self._ending:
            self._wait(np.repeat(held, self._late, axis=0))
            self._ending = True
        yield from self._answered()
        if held is not None and self._server is not None:
            # The server forgets a silent stream, too: this only makes room at once.
            with contextlib.suppress(InferenceServerException):
                self._send(held, self._server, ends=True, timeout_s=END_TIMEOUT_S)
        self._server, self._ahead, self._ending = None, self._late, False
        self._kept.clear()

    def _wait(self, features: Features) -> None:
        starts = range(0, len(features), self._longest)
        self._waiting.extend(np.array(features[start : start + self._longest]) for start in starts)

    def _answered(self) -> Iterator[Outputs]:
        while self._waiting:
            part = self._waiting[0]
            answers = self._ask(part)
            self._keep(self._waiting.popleft())
            early = min(self._ahead, len(part))
            self._ahead -= early
            if early < len(part):
                yield {task: values[early:] for task, values in answers.items()}

    def _keep(self, part: Features) -> None:
        self._kept.append(part)
        while sum(map(len, self._kept)) - len(self._kept[0]) >= self._reach:
            self._kept.popleft()

    def _ask(self, part: Features) -> Outputs:
        asked = checked_input(TEMPORAL_STREAM, self._calls.url, part)
        answers: Outputs = self._calls.repeated(asked, partial(self._attempt, part, asked))
        return answers

    def _attempt(self, part: Features, asked: str, *, client_timeout: float) -> Outputs:
        """Send the next frames once; after an error, the stream is started anew."""
        try:
            if self._server is not None:
                return self._read(part, [self._send(part, self._server, timeout_s=client_timeout)], asked)
        except InferenceServerException as error:
            self._server = None
            if UNKNOWN not in (error.message() or ""):
                raise
        return self._anew(part, asked, client_timeout)

    def _anew(self, part: Features, asked: str, timeout_s: float) -> Outputs:
        """Start the stream on a server with all that the head can see back from the next frames."""
        server, self._number = self._next_server(), secrets.randbits(62) + 1
        frames = np.concatenate([*self._kept, part])
        starts = range(0, len(frames), self._longest)
        results = [
            self._send(frames[start : start + self._longest], server, starts=start == 0, timeout_s=timeout_s)
            for start in starts
        ]
        self._server = server
        return self._read(frames, results, asked, last=len(part))

    def _send(
        self,
        frames: Features,
        server: triton.InferenceServerClient,
        *,
        starts: bool = False,
        ends: bool = False,
        timeout_s: float,
    ) -> triton.InferResult:
        return server.infer(
            TEMPORAL_STREAM.name,
            [raw_tensor(FEATURES, frames)],
            sequence_id=self._number,
            sequence_start=starts,
            sequence_end=ends,
            client_timeout=timeout_s,
        )

    def _read(self, frames: Features, results: list[triton.InferResult], asked: str, last: int = 0) -> Outputs:
        """Return the answers of the `last` frames sent, all unless given."""
        lengths = [min(self._longest, len(frames) - start) for start in range(0, len(frames), self._longest)]
        return {
            task: np.concatenate(
                [
                    output(result, asked, task, (length, len(names)))
                    for result, length in zip(results, lengths, strict=True)
                ]
            )[-last:]
            for task, names in self._labels.items()
        }
