"""A Triton backend called `openvino`, written for Triton's python backend: runs the ONNX file of any model that says
`backend: "openvino"`, with the configuration that Triton's native OpenVINO backend takes.

Requests are read, checked and answered by affserve_backend.py; here is only what is OpenVINO's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino as ov
from affserve_backend import Backend, GraphTensors, LoadError, Tensors, parameter

BF16_PARAMETER = "HINT_BF16"  # as the native backend calls it


class TritonPythonModel(Backend):
    """One instance of one model."""

    engine_errors = (RuntimeError,)

    def open(self, config: Mapping[str, Any], path: Path, threads: int, args: Mapping[str, str]) -> str:
        if args["model_instance_kind"] == "GPU":
            raise LoadError(f"{self.name}: the configuration asks for KIND_GPU and OpenVINO computes on the CPU here")
        half = parameter(config, BF16_PARAMETER, "NO") == "YES"
        self._compiled = load(self.name, path, threads, half=half)
        self._request = self._compiled.create_infer_request()
        return f"OpenVINO {ov.__version__.partition('-')[0]} CPU{' in bf16' * half}"

    def graph(self) -> tuple[GraphTensors, GraphTensors]:
        return described(self._compiled.inputs), described(self._compiled.outputs)

    def run(self, inputs: Tensors) -> Tensors:
        answer = self._request.infer(inputs, share_inputs=True)
        return {name: answer[name] for name in self.computed}

    def close(self) -> None:
        del self._request, self._compiled


def load(name: str, path: Path, threads: int, *, half: bool) -> Any:
    """Compile the ONNX file for one synchronous request at a time; threads 0 leaves their number to OpenVINO."""
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # OpenVINO's own choice is bf16 where the processor has it, for any graph: a precision is chosen at export.
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        # Pinned, the instances of a model would all sit on the same cores: each is a process of its own.
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    try:
        return ov.Core().compile_model(str(path), "CPU", properties)
    except RuntimeError as error:
        raise LoadError(f"{name}: OpenVINO cannot load {path.name}: {error}") from error


def described(ports: Sequence[Any]) -> GraphTensors:
    """Return the tensors of a compiled model by name."""
    return {port.get_any_name(): (port.get_element_type().to_dtype().name, shape_of(port)) for port in ports}


def shape_of(port: Any) -> list[int]:
    """Return a port's shape, -1 for a free axis."""
    return [axis.get_length() if axis.is_static else -1 for axis in port.get_partial_shape()]
