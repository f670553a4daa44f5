"""A float32 graph to half precision, with float32 islands where half overflows or rounds too much.

LayerNormalization always is an island: the squares in its variance overflow float16 at 256. Softmax becomes one when
parity asks for it. Answers stay float32 and frames uint8; `(pixel - 114) / 64` is exact in float16.

ONNX Runtime's own converter is not used: it gives an invalid graph where two islands share a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx  # noqa: TID253 - this file is about it
from onnx import TensorProto, helper, numpy_helper  # noqa: TID253

from affserve.export.graphs.onnx_file import save

ISLANDS = ("LayerNormalization",)
WIDER_ISLANDS = ("LayerNormalization", "Softmax")


def to_half(source: Path, path: Path, islands: Sequence[str] = ISLANDS) -> None:
    """Write the float16 form of a float32 graph; islands: operators that compute in float32.

    A weight too large for float16 becomes infinite, and parity tells.
    """
    model = onnx.load(source)
    graph = model.graph
    wide = {one.name for one in graph.initializer if one.data_type == TensorProto.FLOAT}
    inputs = {one.name for one in graph.input if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    outputs = {one.name for one in graph.output if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes = [_cast(name, _half(name), TensorProto.FLOAT16) for name in sorted(inputs)]
    renamed = inputs | outputs | wide
    for node in graph.node:
        nodes += _as_island(node, wide, renamed) if node.op_type in islands else [_in_half(node, renamed)]
    nodes += [_cast(_half(name), name, TensorProto.FLOAT) for name in sorted(outputs)]
    del graph.node[:]
    graph.node.extend(nodes)
    # Both forms of every weight: those that nobody reads are dropped on saving.
    graph.initializer.extend([_halved(one) for one in graph.initializer if one.name in wide])
    save(model, path)


def _half(name: str) -> str:
    return f"{name}.half"


def _halves(names: Iterable[str], renamed: set[str]) -> list[str]:
    return [_half(name) if name in renamed else name for name in names]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}.cast", to=to)


def _copy(node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = inputs, outputs
    return copy


def _in_half(node: onnx.NodeProto, renamed: set[str]) -> onnx.NodeProto:
    """Let a node read and write half precision; what is no float passes through under its own name."""
    copy = _copy(node, _halves(node.input, renamed), _halves(node.output, renamed))
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
    return copy


def _as_island(node: onnx.NodeProto, wide: set[str], renamed: set[str]) -> list[onnx.NodeProto]:
    """Surround a node that computes in float32 by casts; its weights stay as they are."""
    computed = [name for name in node.input if name and name not in wide]
    inputs = [f"{node.output[0]}.wide.{name}" if name in computed else name for name in node.input]
    outputs = [f"{name}.wide" for name in node.output]
    return [
        *(
            _cast(half, wider, TensorProto.FLOAT)
            for name, half, wider in zip(node.input, _halves(node.input, renamed), inputs, strict=True)
            if name in computed
        ),
        _copy(node, inputs, outputs),
        *(
            _cast(wider, half, TensorProto.FLOAT16)
            for half, wider in zip(_halves(node.output, renamed), outputs, strict=True)
        ),
    ]


def _halved(weight: TensorProto) -> TensorProto:
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), _half(weight.name))
