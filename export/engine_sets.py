"""The engine sets: the ways in which one repository can be served, each a configuration of every model.

A set's name is the word after --engine and tritonserver's --model-config-name: configs/<name>.pbtxt of a model, and
where there is none config.pbtxt. Nothing heavy is imported: the command line reads its choices here.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"  # the fastest set that this machine can run
CPU, CUDA, RTX, TENSORRT = "cpu", "cuda", "rtx", "tensorrt"

ONNX_RUNTIME, OPENVINO = "onnxruntime", "openvino"  # what computes a model of the set cpu, as Triton calls its backend
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}  # in the environment: ONNX Runtime's wheels report to Microsoft without

ONNX_FILE = "model.onnx"  # for a CPU
GPU_ONNX_FILE = "model.gpu.onnx"  # for ONNX Runtime on a GPU, and what plans are built from
RTX_PLAN_FILE = "model.rtx.plan"  # one for all RTX cards


@dataclass(frozen=True, kw_only=True)
class EngineSet:
    """One way to serve."""

    name: str
    words: str  # what computes
    file: str  # of each model with weights, in the folder of its version; {sm}: the GPU's compute capability
    on_gpu: bool
    instances: int = 1  # of the encoder on each GPU, unless told


ENGINE_SETS: dict[str, EngineSet] = {
    one.name: one
    for one in (
        # The name of no file: it is config.pbtxt itself, what a Triton serves that is told nothing.
        EngineSet(name=TENSORRT, words="TensorRT on the GPU", file="model.sm{sm}.plan", on_gpu=True),
        EngineSet(name=RTX, words="TensorRT for RTX on the GPU", file=RTX_PLAN_FILE, on_gpu=True),
        # Each is a process that copies and computes in turn. On an H200, 4 callers with 32 frames per request get 6,100
        # frames/s from one, 10,900 from two, 13,400 from three and 15,300 from four; each takes 0.7 GiB of the GPU.
        EngineSet(name=CUDA, words="ONNX Runtime on the GPU", file=GPU_ONNX_FILE, on_gpu=True, instances=4),
        EngineSet(name=CPU, words="the CPU", file=ONNX_FILE, on_gpu=False),
    )
}
"""By name, the fastest first."""
