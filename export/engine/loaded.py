"""A plan under test: has it the contract's tensors, was it built in the precision of its graph, what does it compute?

Runs plans with PyTorch's CUDA tensors as buffers, because export has PyTorch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format  # noqa: TID253 - this file compares with it
import tensorrt as trt  # noqa: TID253 - this file is about it
import torch  # noqa: TID253 - this file runs on its tensors
from numpy.typing import NDArray

from affserve.export.contract import ModelSpec, TensorSpec
from affserve.export.engine.builder import Messages, logger_into
from affserve.export.engine.compiled import TYPES
from affserve.export.engine.device import cuda_device
from affserve.export.engine.profile import Profile
from affserve.export.machine.gpus import Gpu
from affserve.train.errors import ExportError

# Built in the precision of its graph, a plan holds the graph's weights once, some of them in two layouts; built in
# FP32 from an FP16 graph it holds twice the bytes.
LARGEST_WEIGHT_RATIO = 1.5
PLAN_OVERHEAD_BYTES = 32 << 20  # kernels and tables; a plan is otherwise its weights
ENGINE_TYPES = {"UINT8": trt.DataType.UINT8, "FP32": trt.DataType.FLOAT}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A plan, loaded on a GPU. It holds what TensorRT needs to stay alive."""

    engine: trt.ICudaEngine
    runtime: trt.Runtime
    logger: trt.ILogger
    messages: Messages
    device: torch.device
    plan_bytes: int


def open_engine(plan: bytes, gpu: Gpu) -> Engine:
    """Load a plan; ExportError when TensorRT does not take it."""
    messages, device = Messages(), cuda_device(gpu)
    logger = logger_into(trt, messages)
    with torch.cuda.device(device):
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ExportError(f"TensorRT {trt.__version__} does not load the plan it has built; it said:{messages.tail()}")
    return Engine(engine=engine, runtime=runtime, logger=logger, messages=messages, device=device, plan_bytes=len(plan))


def verify(loaded: Engine, profile: Profile, outputs: Sequence[str], onnx: Path) -> dict[str, Any]:
    """Check tensors and weight bytes of a plan, and return what is inside it as plain values; ExportError if wrong."""
    check_tensors(loaded.engine, profile, outputs)
    weights = onnx_weights(onnx)
    held = loaded.engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE)
    if held <= 0:  # where TensorRT does not tell
        held = max(0, loaded.plan_bytes - PLAN_OVERHEAD_BYTES)
    check_weights(held, weights, onnx)
    return {**inspect(loaded, profile), "weight_bytes": held, "onnx_weight_bytes": weights}


def check_tensors(engine: trt.ICudaEngine, profile: Profile, outputs: Sequence[str]) -> None:
    """Compare names, directions, types, shapes and profile of a plan with the contract."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name)))
        for name in names
    }
    expected = expected_tensors(profile.model, outputs)
    if found != expected:
        lines = "".join(
            f"\n  {name}: found {found.get(name)}, expected {expected.get(name)}" for name in found | expected
        )
        raise ExportError(f"the plan of {profile.model.name} does not have the contract's tensors:{lines}")
    for name, shapes in profile.shapes.items():
        built_for = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
        if built_for != tuple(shapes):
            raise ExportError(
                f"the plan of {profile.model.name} takes {name} in shapes {built_for}; expected {tuple(shapes)}"
            )


def expected_tensors(model: ModelSpec, outputs: Sequence[str]) -> dict[str, tuple[Any, Any, tuple[int, ...]]]:
    """Return mode, type and shape of each tensor of a plan; a head may have been trained for some of the outputs."""
    known = {spec.name: spec for spec in model.outputs}
    unknown = [name for name in outputs if name not in known]
    if unknown or not outputs:
        raise ExportError(
            f"the graph of {model.name} puts out {', '.join(outputs) or 'nothing'}; expected some of {', '.join(known)}"
        )
    inputs = {spec.name: (trt.TensorIOMode.INPUT, *_in_engine(model, spec)) for spec in model.inputs}
    return inputs | {name: (trt.TensorIOMode.OUTPUT, *_in_engine(model, known[name])) for name in outputs}


def _in_engine(model: ModelSpec, spec: TensorSpec) -> tuple[trt.DataType, tuple[int, ...]]:
    batch = -1 if model.max_batch_size else 1
    return ENGINE_TYPES[spec.datatype], (batch, *spec.shape)


def onnx_weights(path: Path) -> dict[str, int]:
    """Return the bytes of a graph's weights by type, such as {"FLOAT16": 175_000_000, "FLOAT": 150_000}."""
    sizes: Counter[str] = Counter()
    for tensor in onnx_format.load(str(path)).graph.initializer:
        width = onnx_format.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        sizes[onnx_format.TensorProto.DataType.Name(tensor.data_type)] += width * int(np.prod(tensor.dims))
    return dict(sizes)


def check_weights(held: int, weights: Mapping[str, int], onnx: Path) -> None:
    """Refuse a plan that is much larger than its graph: it was built in a wider type."""
    limit = LARGEST_WEIGHT_RATIO * sum(weights.values())
    if held > limit:
        raise ExportError(
            f"the plan holds {held / 1e6:.1f} MB of weights and {onnx.name} {sum(weights.values()) / 1e6:.1f} MB "
            f"(expected at most {limit / 1e6:.1f}): TensorRT {trt.__version__} did not keep the graph's types; build "
            "with the container's TensorRT, and report this"
        )


def inspect(loaded: Engine, profile: Profile) -> dict[str, Any]:
    """Return the number of layers and of their outputs by type, as TensorRT's inspector tells them."""
    inspector = loaded.engine.create_engine_inspector()
    with torch.cuda.device(loaded.device):
        context = loaded.engine.create_execution_context()
    for name, (_, optimum, _) in profile.shapes.items():
        context.set_input_shape(name, optimum)
    inspector.execution_context = context  # without shapes it says "N/A due to dynamic shapes" of every type
    report = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return summarise(report)


def summarise(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inspector's JSON in short."""
    layers = report.get("Layers", [])
    outputs = [tensor for layer in layers if isinstance(layer, dict) for tensor in layer.get("Outputs", [])]
    types = Counter(TYPES.get(tensor.get("DataType"), "other") for tensor in outputs)
    return {"layers": len(layers), "types": dict(types.most_common())}


class PlanRunner:
    """Runs a loaded plan: its one input to its outputs, in the order of the graph."""

    def __init__(self, loaded: Engine, profile: Profile, outputs: Sequence[str]) -> None:
        (self._input,) = profile.shapes
        self._outputs = tuple(outputs)
        self._loaded = loaded
        with torch.cuda.device(loaded.device):
            self._context = loaded.engine.create_execution_context()
            self._stream = torch.cuda.Stream()

    def __call__(self, values: NDArray[Any]) -> list[NDArray[np.float32]]:
        """values: as the graph takes them, any length within the profile; ExportError when TensorRT refuses."""
        with torch.cuda.device(self._loaded.device), torch.cuda.stream(self._stream):
            given = torch.from_numpy(np.array(values, order="C")).to(self._loaded.device)
            self._accept(self._context.set_input_shape(self._input, tuple(given.shape)), f"shape {tuple(given.shape)}")
            answers = [self._empty(name) for name in self._outputs]
            for name, tensor in zip((self._input, *self._outputs), (given, *answers), strict=True):
                self._accept(self._context.set_tensor_address(name, tensor.data_ptr()), f"the buffer of {name}")
            self._accept(self._context.execute_async_v3(self._stream.cuda_stream), "to run")
            self._stream.synchronize()
            return [tensor.cpu().numpy() for tensor in answers]

    def _empty(self, name: str) -> torch.Tensor:
        shape = tuple(self._context.get_tensor_shape(name))
        return torch.empty(shape, dtype=torch.float32, device=self._loaded.device)

    def _accept(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise ExportError(f"the plan refuses {what}; TensorRT said:{self._loaded.messages.tail()}")
