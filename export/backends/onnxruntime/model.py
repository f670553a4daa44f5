"""A Triton backend called `onnxruntime`, written for Triton's python backend: runs the ONNX file of any model that says
`backend: "onnxruntime"`, with the configuration that Triton's native ONNX Runtime backend takes.

Runs inside Triton's stub process, where affserve is not importable: only NumPy, ONNX Runtime and Triton's own module.
Python touches requests, never frames: inputs of a batch are concatenated once, outputs leave as views.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file is about it
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # noqa: TID253

# Frames per run of ViT-B-32. On two CPU cores FP32 has its full speed (19 frames/s at 32 and at 96) with 0.4 GB of
# activations; a batch of 300 in one run would take about 3 GB.
CPU_SLICE_FRAMES = 32
# On an H200, 4 callers with 32 frames per request get 5,870 frames/s in runs of 128 and 3,283 in runs of 32.
CUDA_SLICE_FRAMES = 128
THREADS_VARIABLE = "AFFSERVE_THREADS"

Array = NDArray[Any]
Tensors = dict[str, Array]

ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
GRAPH_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}


class LoadError(Exception):
    """The model cannot be served; the message goes to Triton's log."""


class BadRequestError(Exception):
    """A request that this model cannot answer; the message goes to the caller."""


REQUEST_ERRORS: tuple[type[Exception], ...] = (BadRequestError, *ORT_ERRORS)


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._name: str = config["name"]
        self._batches = config["max_batch_size"] > 0
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._longest = 0 if self._batches else int(parameter(config, "window_frames", "0"))  # frames; 0: no limit
        path = Path(args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx")
        threads = int(parameter(config, "intra_op_thread_count", os.environ.get(THREADS_VARIABLE, "0")))
        providers = choose_providers(
            args["model_instance_kind"], int(args["model_instance_device_id"]), ort.get_available_providers()
        )
        self._session = load(self._name, path, threads, providers)
        self._slice = slice_frames(self._session.get_providers())
        check_tensors(config, self._session)
        engine = f"ONNX Runtime {ort.__version__} {self._session.get_providers()[0].removesuffix('ExecutionProvider')}"
        pb_utils.Logger.log_info(f"{self._name} runs on {engine}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        groups = [requests] if self._batches else [[request] for request in requests]
        return [response for group in groups for response in self._answer(group)]

    def finalize(self) -> None:
        del self._session

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests that share a batch; if it fails, each on its own: only the bad one gets an error."""
        try:
            inputs = [self._read(request) for request in requests]
            outputs = self._run(join(inputs))
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

    def _read(self, request: Any) -> Tensors:
        """Return the request's inputs as views of shared memory; Triton has checked names, types and fixed axes."""
        tensors: Tensors = {}
        for name in self._inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise BadRequestError(f"input {name} is missing")
            values: Array = tensor.as_numpy()
            if values.size == 0 or (self._longest and max(values.shape[:-1]) > self._longest):
                rule = f"expected 1 to {self._longest} frames" if self._longest else "expected at least one frame"
                raise BadRequestError(f"input {name} has shape {list(values.shape)}; {rule}")
            check_finite(name, values)
            tensors[name] = values
        return tensors

    def _run(self, inputs: Tensors) -> Tensors:
        frames = len(next(iter(inputs.values())))
        if not self._batches or frames <= self._slice:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        parts = [
            self._session.run(self._outputs, {name: v[start : start + self._slice] for name, v in inputs.items()})
            for start in range(0, frames, self._slice)
        ]
        return {
            name: np.concatenate(column) for name, column in zip(self._outputs, zip(*parts, strict=True), strict=True)
        }

    def _refuse(self, error: Exception) -> Any:
        ours = isinstance(error, (BadRequestError, ort_errors.InvalidArgument))
        code = pb_utils.TritonError.INVALID_ARG if ours else pb_utils.TritonError.INTERNAL
        pb_utils.Logger.log_error(f"{self._name} could not answer: {type(error).__name__}: {error}")
        told = (
            without_paths(str(error)) if isinstance(error, REQUEST_ERRORS) else "internal error, see the server's log"
        )
        message = f"{self._name} cannot answer this request: {told}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def parameter(config: Mapping[str, Any], key: str, default: str) -> str:
    """Return a parameter of the model configuration."""
    value: str = config["parameters"].get(key, {}).get("string_value", "")
    return value or default


def choose_providers(kind: str, device: int, available: Sequence[str]) -> list[Any]:
    """Return ONNX Runtime's providers for a Triton instance kind; a GPU that cannot be used is an error, not a CPU."""
    if kind != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise LoadError(
            f"the configuration asks for KIND_GPU and this ONNX Runtime has only {', '.join(available)}: install "
            "onnxruntime-gpu in place of onnxruntime, or ask for KIND_CPU"
        )
    return [("CUDAExecutionProvider", {"device_id": device}), "CPUExecutionProvider"]


def slice_frames(providers: Sequence[str]) -> int:
    """Return how many frames of a batch are computed in one run by a session with these providers."""
    return CUDA_SLICE_FRAMES if providers[0] == "CUDAExecutionProvider" else CPU_SLICE_FRAMES


def load(name: str, path: Path, threads: int, providers: list[Any]) -> ort.InferenceSession:
    """Open the ONNX file for serving; threads 0 leaves their number to ONNX Runtime."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin take the cores from the other model, the server and the client: on two busy cores they make
    # a window of 300 frames take 26 ms in place of 13. On idle ones they would save a tenth.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept per input shape, there are 300 lengths of a window, and they gain no time here.
    options.enable_mem_pattern = False
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted == "CUDAExecutionProvider":
        # CUDA's libraries in the nvidia-... wheels, which come with PyTorch, are on no library path.
        ort.preload_dlls()
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except ORT_ERRORS as error:
        raise LoadError(f"{name}: ONNX Runtime cannot load {path.name}: {error}") from error
    if session.get_providers()[0] != wanted:
        raise LoadError(f"{name}: ONNX Runtime could not use {wanted}; its own message is above")
    return session


def check_tensors(config: Mapping[str, Any], session: ort.InferenceSession) -> None:
    """Refuse a configuration that does not fit the graph, as the native backend does."""
    for side, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
        graph = {node.name: node for node in nodes}
        for tensor in config[side]:
            node = graph.get(tensor["name"])
            if node is None:
                raise LoadError(
                    f"{config['name']}: the graph has no {side} {tensor['name']}; it has {', '.join(graph)}"
                )
            shape = [-1] if config["max_batch_size"] > 0 else []
            shape += [int(n) for n in tensor.get("reshape", {}).get("shape", tensor["dims"])]
            if GRAPH_TYPES.get(tensor["data_type"]) != node.type or not fits(shape, node.shape):
                raise LoadError(
                    f"{config['name']}: {side} {tensor['name']} is {tensor['data_type']} {shape} in the configuration "
                    f"and {node.type} {node.shape} in the graph"
                )


def fits(shape: Sequence[int], graph: Sequence[int | str | None]) -> bool:
    """Say whether a configured shape can be run by a graph whose free axes are names or None."""
    return len(shape) == len(graph) and all(not isinstance(g, int) or s == g for s, g in zip(shape, graph, strict=True))


def join(inputs: Sequence[Tensors]) -> Tensors:
    """Concatenate the inputs of several requests; those of a single one are passed through uncopied."""
    if len(inputs) == 1:
        return inputs[0]
    for name in inputs[0]:
        if len({tensors[name].shape[1:] for tensors in inputs}) > 1:
            raise BadRequestError(f"inputs {name} of one batch differ in shape")
    return {name: np.concatenate([tensors[name] for tensors in inputs]) for name in inputs[0]}


def check_finite(name: str, values: Array) -> None:
    """Refuse NaN and infinity (0.05 ms for a window): they would spread to every frame of the answer and look real."""
    if values.dtype.kind != "f" or (finite := np.isfinite(values)).all():
        return
    first = int(np.argwhere(~finite)[0][-2])  # the axis of frames comes before that of features
    raise BadRequestError(
        f"input {name} holds {np.count_nonzero(~finite)} values that are no finite number, the first in frame {first}"
    )


def respond(outputs: Tensors) -> Any:
    """Wrap outputs for Triton, which sends on those that were asked for."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])


def without_paths(message: str) -> str:
    """Strip file paths from a message that leaves the machine."""
    return re.sub(r"(?:[\w.~-]*/){2,}[\w.~-]*", "...", message)
