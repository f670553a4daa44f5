"""How much arithmetic an ONNX graph does: the multiplications and additions of its matrix products and convolutions.

Everything else (normalisation, softmax, activations) is below one per cent in these models and is not counted. Shapes
come from a run, not from inference: a graph may hold operators that only ONNX Runtime knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # noqa: TID253 - this file is about it
import onnxruntime as ort  # noqa: TID253 - this file runs it

from affserve.train.errors import ExportError

Shapes = Mapping[str, Sequence[int]]
NUMPY_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
LARGE_WEIGHT = 1 << 14  # values
# Parts of the names of operators that multiply matrices; one that is not in the table below must not be missed.
ARITHMETIC = ("MatMul", "Gemm", "Conv", "Attention", "Einsum", "LSTM", "GRU", "RNN")


def count_flops(path: Path, inputs: Shapes) -> int:
    """Return the floating point operations of one run at these input shapes; a multiplication and an addition are two.

    ExportError for an operator that multiplies matrices in a way that is not known here.
    """
    model = onnx.load(str(path))
    counted = [node for node in model.graph.node if any(part in node.op_type for part in ARITHMETIC)]
    for node in counted:
        if node.op_type not in _OPERATIONS or node.domain not in ("", "com.microsoft"):
            raise ExportError(
                f"{path.name} has the operator {node.domain or 'ai.onnx'}.{node.op_type}, whose arithmetic is not "
                f"counted; expected {', '.join(_OPERATIONS)}"
            )
    shapes = _observed_shapes(model, {tensor for node in counted for tensor in _operands(node)}, inputs)
    return sum(_OPERATIONS[node.op_type](node, [shapes[tensor] for tensor in _operands(node)]) for node in counted)


def _operands(node: Any) -> list[str]:
    """Return the tensors whose shapes tell what a node does: its first two inputs and its first output."""
    return [*node.input[:2], node.output[0]]


def _observed_shapes(model: Any, tensors: set[str], inputs: Shapes) -> dict[str, tuple[int, ...]]:
    """Run the graph on zeros with nothing but the shapes of the tensors as outputs."""
    names = sorted(tensors)
    _empty_weights(model.graph)
    del model.graph.output[:]
    for k, tensor in enumerate(names):
        model.graph.node.append(onnx.helper.make_node("Shape", [tensor], [f"observed_{k}"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"observed_{k}", onnx.TensorProto.INT64, [None]))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # tensors must keep their names
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    zeros = {node.name: np.zeros(inputs[node.name], NUMPY_TYPES[node.type]) for node in session.get_inputs()}
    return {tensor: tuple(shape.tolist()) for tensor, shape in zip(names, session.run(None, zeros), strict=True)}


def _empty_weights(graph: Any) -> None:
    """Put a node that makes zeros in place of every large weight: a graph without weights is read and run at once."""
    large = [weight for weight in graph.initializer if math.prod(weight.dims) > LARGE_WEIGHT]
    for k, weight in enumerate(large):
        value = onnx.helper.make_tensor("value", weight.data_type, [1], [0])
        graph.initializer.append(
            onnx.helper.make_tensor(f"dims_{k}", onnx.TensorProto.INT64, [len(weight.dims)], weight.dims)
        )
        node = onnx.helper.make_node("ConstantOfShape", [f"dims_{k}"], [weight.name], value=value)
        graph.node.insert(0, node)
        graph.initializer.remove(weight)


Observed = Sequence[tuple[int, ...]]  # of the operands


def _matmul(_: Any, shapes: Observed) -> int:
    left, _right, out = shapes
    return 2 * math.prod(out) * left[-1]


def _gemm(node: Any, shapes: Observed) -> int:
    left, _right, out = shapes
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(out) * left[0 if transposed else 1]


def _conv(_: Any, shapes: Observed) -> int:
    """Every output value is a dot product with one filter: (channels / groups) x kernel."""
    _x, filters, out = shapes
    return 2 * math.prod(out) * math.prod(filters[1:])


def _attention(_: Any, shapes: Observed) -> int:
    """Queries (B, S, C) with keys (B, T, C), then the weights with values: two products of S x T x C."""
    queries, keys, _out = shapes
    return 2 * 2 * math.prod(queries) * keys[1]


_OPERATIONS: Mapping[str, Callable[[Any, Observed], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "MultiHeadAttention": _attention,
}
