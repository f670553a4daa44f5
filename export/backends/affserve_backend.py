"""What the python-based backends of ours share: reading requests, checking them, refusing the bad ones, putting the
requests of a batch together and taking the answers apart. An engine adds how it loads a file and runs it once.

Runs inside Triton's stub process, where affserve is not importable: only the standard library, NumPy and Triton's own
module. It lies beside that module in the backend directory, where every stub finds it.
Python touches requests, never frames: inputs of a batch are concatenated once, outputs leave as views.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

THREADS_VARIABLE = "AFFSERVE_THREADS"
# Frames per run of ViT-B-32. On two CPU cores FP32 has its full speed (19 frames/s at 32 and at 96) with 0.4 GB of
# activations; a batch of 300 in one run would take about 3 GB.
CPU_SLICE_FRAMES = 32

Array = NDArray[Any]
Tensors = dict[str, Array]
GraphTensors = Mapping[str, tuple[str, Sequence[Any]]]
"""Name of a graph's input or output -> its NumPy type and shape; a free axis is -1, a name or None."""

NUMPY_TYPES = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_INT8": "int8",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
}


# What outputs of ours mean; those of other names may be anything.
RANGES = {"valence_arousal": (-1.0, 1.0), "expression": (0.0, 1.0), "action_units": (0.0, 1.0)}
ROUNDING = 1e-3  # of half precision


class LoadError(Exception):
    """The model cannot be served; the message goes to Triton's log."""


class BadRequestError(Exception):
    """A request that this model cannot answer; the message goes to the caller."""


class Backend:
    """One instance of one model; a backend's TritonPythonModel is a subclass that opens and runs its engine."""

    slice_frames = CPU_SLICE_FRAMES  # of a batch, at most so many in one run
    engine_errors: tuple[type[Exception], ...] = ()  # what the engine raises for a request: its message may be told
    refusals: tuple[type[Exception], ...] = ()  # those of them that are the request's fault

    def open(self, config: Mapping[str, Any], path: Path, threads: int, args: Mapping[str, str]) -> str:
        """Load the file and return the engine in words, such as "ONNX Runtime 1.31.1 CPU"; LoadError otherwise.

        threads: 0 leaves their number to the engine. args: as Triton gives them (model_instance_kind and so on).
        """
        raise NotImplementedError

    def graph(self) -> tuple[GraphTensors, GraphTensors]:
        """Return inputs and outputs of what was opened."""
        raise NotImplementedError

    def run(self, inputs: Tensors) -> Tensors:
        """Compute the outputs of at most `slice_frames` frames, or of one request of a model that does not batch."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what was opened."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model, as Triton asks."""
        config = json.loads(args["model_config"])
        self.name: str = config["name"]
        self.batches = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.streams = Streams(config["sequence_batching"]) if "sequence_batching" in config else None
        self.computed = [*self.outputs, *([self.streams.output] if self.streams is not None else [])]
        self._longest = 0 if self.batches else int(parameter(config, "window_frames", "0"))  # frames; 0: no limit
        path = Path(args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx")
        threads = int(parameter(config, "intra_op_thread_count", os.environ.get(THREADS_VARIABLE, "0")))
        engine = self.open(config, path, threads, args)
        check_tensors(config, *self.graph())
        pb_utils.Logger.log_info(f"{self.name} runs on {engine}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer what Triton has gathered, one response for each request."""
        if self.streams is not None:
            return [self._answer_step(request, self.streams) for request in requests]
        groups = [requests] if self.batches else [[request] for request in requests]
        return [response for group in groups for response in self._answer(group)]

    def finalize(self) -> None:
        """Unload the model, as Triton asks."""
        self.close()

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests that share a batch; if it fails, each on its own: only the bad one gets an error."""
        try:
            inputs = [self._read(request) for request in requests]
            outputs = self._run_in_slices(join(inputs))
            for name, values in outputs.items():
                check_answer(name, values)
        except Exception as error:  # noqa: BLE001 - Triton would send its trace, with our paths, to whoever asked
            if len(requests) > 1:
                return [response for request in requests for response in self._answer([request])]
            return [self._refuse(error)]
        if len(requests) == 1:
            return [respond(outputs)]
        rows = [len(next(iter(tensors.values()))) for tensors in inputs]
        ends = np.cumsum(rows)
        return [
            respond({name: values[end - count : end] for name, values in outputs.items()})
            for count, end in zip(rows, ends, strict=True)
        ]

    def _answer_step(self, request: Any, streams: Streams) -> Any:
        """Answer the next frames of one stream. What fails leaves its state as it was."""
        try:
            stream, flags = request.correlation_id(), request.flags()
            state = streams.before(stream, starts=bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START))
            outputs = self.run({**self._read(request), streams.input: state})
        except Exception as error:  # noqa: BLE001 - as above
            return self._refuse(error)
        after = outputs.pop(streams.output)
        streams.after(stream, after, ends=bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END))
        return respond(outputs)

    def _read(self, request: Any) -> Tensors:
        """Return the request's inputs as views of shared memory; Triton has checked names, types and fixed axes."""
        tensors: Tensors = {}
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise BadRequestError(f"input {name} is missing")
            values: Array = tensor.as_numpy()
            if values.size == 0 or (self._longest and max(values.shape[:-1]) > self._longest):
                rule = f"expected 1 to {self._longest} frames" if self._longest else "expected at least one frame"
                raise BadRequestError(f"input {name} has shape {list(values.shape)}; {rule}")
            check_finite(f"input {name}", values)
            tensors[name] = values
        return tensors

    def _run_in_slices(self, inputs: Tensors) -> Tensors:
        frames = len(next(iter(inputs.values())))
        if not self.batches or frames <= self.slice_frames:
            return self.run(inputs)
        parts = [
            self.run({name: values[start : start + self.slice_frames] for name, values in inputs.items()})
            for start in range(0, frames, self.slice_frames)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _refuse(self, error: Exception) -> Any:
        ours = isinstance(error, (BadRequestError, *self.refusals))
        code = pb_utils.TritonError.INVALID_ARG if ours else pb_utils.TritonError.INTERNAL
        pb_utils.Logger.log_error(f"{self.name} could not answer: {type(error).__name__}: {error}")
        may_tell = isinstance(error, (BadRequestError, *self.engine_errors))
        told = without_paths(str(error)) if may_tell else "internal error, see the server's log"
        message = f"{self.name} cannot answer this request: {told}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class Streams:
    """What is remembered of the streams of one model: bounded, and dropped when a stream ends or is silent for long.

    Triton's own implicit state does this for native backends, by the same lines of the configuration.
    """

    def __init__(self, batching: Mapping[str, Any]) -> None:
        (state,) = batching["state"]
        self.input, self.output = state["input_name"], state["output_name"]
        self._nothing = np.zeros([int(length) for length in state["dims"]], dtype=np.float32)
        self._idle_s = int(batching["max_sequence_idle_microseconds"]) / 1e6
        self._most = int(batching["oldest"]["max_candidate_sequences"])
        self._kept: dict[Any, tuple[float, Array]] = {}  # when it was last used, longest ago first

    def before(self, stream: Any, *, starts: bool) -> Array:
        """Return what is remembered of a stream; BadRequestError for one that is not known."""
        if starts:
            return self._nothing
        if stream not in self._kept:  # Triton refuses such requests itself, in these words
            raise BadRequestError(
                f"inference request for sequence {stream} must specify the START flag on the first request"
            )
        return self._kept[stream][1]

    def after(self, stream: Any, state: Array, *, ends: bool) -> None:
        """Remember a state; forget those of streams that have ended or that Triton has forgotten."""
        now_s = time.monotonic()
        self._kept.pop(stream, None)
        if not ends:
            self._kept[stream] = now_s, state
        for other, (used_s, _) in list(self._kept.items()):
            if len(self._kept) <= self._most and now_s - used_s <= self._idle_s:
                break
            del self._kept[other]


def parameter(config: Mapping[str, Any], key: str, default: str) -> str:
    """Return a parameter of the model configuration."""
    value: str = config["parameters"].get(key, {}).get("string_value", "")
    return value or default


def check_tensors(config: Mapping[str, Any], inputs: GraphTensors, outputs: GraphTensors) -> None:
    """Refuse a configuration that does not fit the graph, as the native backends do."""
    for side, graph in (("input", inputs), ("output", outputs)):
        for tensor in config[side]:
            if tensor["name"] not in graph:
                raise LoadError(
                    f"{config['name']}: the graph has no {side} {tensor['name']}; it has {', '.join(graph)}"
                )
            kind, found = graph[tensor["name"]]
            shape = [-1] if config["max_batch_size"] > 0 else []
            shape += [int(n) for n in tensor.get("reshape", {}).get("shape", tensor["dims"])]
            if NUMPY_TYPES.get(tensor["data_type"]) != kind or not fits(shape, found):
                raise LoadError(
                    f"{config['name']}: {side} {tensor['name']} is {tensor['data_type']} {shape} in the configuration "
                    f"and {kind} {list(found)} in the graph"
                )


def fits(shape: Sequence[int], graph: Sequence[Any]) -> bool:
    """Say whether a configured shape can be run by a graph whose free axes are -1, names or None."""
    return len(shape) == len(graph) and all(
        not isinstance(length, int) or length in (-1, wanted) for wanted, length in zip(shape, graph, strict=True)
    )


def join(inputs: Sequence[Tensors]) -> Tensors:
    """Concatenate the inputs of several requests; those of a single one are passed through uncopied."""
    if len(inputs) == 1:
        return inputs[0]
    for name in inputs[0]:
        if len({tensors[name].shape[1:] for tensors in inputs}) > 1:
            raise BadRequestError(f"inputs {name} of one batch differ in shape")
    return {name: np.concatenate([tensors[name] for tensors in inputs]) for name in inputs[0]}


def check_finite(what: str, values: Array, remark: str = "") -> None:
    """Refuse NaN and infinity (0.05 ms for a window): they would spread to every frame of the answer and look real."""
    if values.dtype.kind != "f" or (finite := np.isfinite(values)).all():
        return
    first = int(np.argwhere(~finite)[0][-2])  # the axis of frames comes before that of features
    raise BadRequestError(
        f"{what} holds {np.count_nonzero(~finite)} values that are no finite number, the first in frame {first}{remark}"
    )


def check_answer(name: str, values: Array) -> None:
    """Refuse to answer what cannot be true: numbers that are none, or outside what the output means."""
    check_finite(f"output {name}", values, ": the input is beyond what the model was made for")
    low, high = RANGES.get(name, (-np.inf, np.inf))
    if values.size and not low - ROUNDING <= values.min() <= values.max() <= high + ROUNDING:
        raise BadRequestError(
            f"output {name} reaches from {values.min():g} to {values.max():g}, expected {low:g} to {high:g}: the input "
            "is beyond what the model was made for, or the model is not what was exported"
        )


def respond(outputs: Tensors) -> Any:
    """Wrap outputs for Triton, which sends on those that were asked for."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])


def without_paths(message: str) -> str:
    """Strip file paths from a message that leaves the machine."""
    return re.sub(r"(?:[\w.~-]*/){2,}[\w.~-]*", "...", message)
