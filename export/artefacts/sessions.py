"""Graphs opened as the server opens them, by the engine that would serve them: for comparing and for measuring."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file is about it
from numpy.typing import NDArray

from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.export.machine.cores import usable_cores
from affserve.export.precision.tolerances import Precision
from affserve.train.errors import ExportError

Session = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""Inputs by name in, outputs by name out."""


class Candidate(NamedTuple):
    """A way to compute one model."""

    precision: Precision
    engine: str = ONNX_RUNTIME  # as Triton calls its backend

    def __str__(self) -> str:
        return f"{self.engine} {self.precision.value}"


def is_at_hand(engine: str) -> bool:
    """Say whether an engine is installed here."""
    return importlib.util.find_spec(engine) is not None


def open_session(path: Path, candidate: Candidate, threads: int | None = None) -> Session:
    """Open a graph on the CPU; threads: the physical cores unless given. ExportError when it cannot be used."""
    threads = threads or usable_cores()
    if candidate.engine == OPENVINO:
        return _open_openvino(path, candidate.precision, threads)
    session = open_graph(path, threads)
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, _contiguous(inputs)), strict=True))


def open_graph(path: Path, threads: int, device: str = "cpu") -> ort.InferenceSession:
    """Open a graph in ONNX Runtime, on one device only: cpu or cuda. ExportError when it cannot be used."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    wanted = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if device == "cuda":
        ort.preload_dlls()  # as the server does
    session = ort.InferenceSession(str(path), options, providers=list(dict.fromkeys((wanted, "CPUExecutionProvider"))))
    if session.get_providers()[0] != wanted:
        raise ExportError(f"ONNX Runtime could not use {wanted} for {path}; its own message is above")
    return session


def _open_openvino(path: Path, precision: Precision, threads: int) -> Session:
    import openvino

    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16 else "f32",
        "ENABLE_CPU_PINNING": False,
    }
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", properties)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot load {path.name}: {error}") from error
    request, names = compiled.create_infer_request(), [port.get_any_name() for port in compiled.outputs]

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        answer = request.infer(_contiguous(inputs), share_inputs=True)
        return {name: answer[name] for name in names}

    return run


def _contiguous(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(values) for name, values in inputs.items()}
