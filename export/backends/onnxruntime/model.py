"""A Triton backend called `onnxruntime`, written for Triton's python backend: runs the ONNX file of any model that says
`backend: "onnxruntime"`, with the configuration that Triton's native ONNX Runtime backend takes.

Requests are read, checked and answered by affserve_backend.py; here is only what is ONNX Runtime's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort  # noqa: TID253 - this file is about it
from affserve_backend import CPU_SLICE_FRAMES, Backend, GraphTensors, LoadError, Tensors
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # noqa: TID253

# On an H200 one instance, 4 callers with 32 frames per request: 5,870 frames/s in runs of 128, 3,283 in runs of 32.
CUDA_SLICE_FRAMES = 128

ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
NUMPY_TYPES = {"float16": "float16", "float": "float32", "double": "float64"}  # of those that are called otherwise


class TritonPythonModel(Backend):
    """One instance of one model."""

    engine_errors = ORT_ERRORS
    refusals = (ort_errors.InvalidArgument,)

    def open(self, config: Mapping[str, Any], path: Path, threads: int, args: Mapping[str, str]) -> str:
        providers = choose_providers(
            args["model_instance_kind"], int(args["model_instance_device_id"]), ort.get_available_providers()
        )
        self._session = load(self.name, path, threads, providers)
        self.slice_frames = slice_frames(self._session.get_providers())
        return f"ONNX Runtime {ort.__version__} {self._session.get_providers()[0].removesuffix('ExecutionProvider')}"

    def graph(self) -> tuple[GraphTensors, GraphTensors]:
        return described(self._session.get_inputs()), described(self._session.get_outputs())

    def run(self, inputs: Tensors) -> Tensors:
        return dict(zip(self.computed, self._session.run(self.computed, inputs), strict=True))

    def close(self) -> None:
        del self._session


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


def described(nodes: Sequence[Any]) -> GraphTensors:
    """Return the tensors of a session by name, with the types as NumPy calls them."""
    kinds = {node.name: node.type.removeprefix("tensor(").removesuffix(")") for node in nodes}
    return {node.name: (NUMPY_TYPES.get(kinds[node.name], kinds[node.name]), node.shape) for node in nodes}
