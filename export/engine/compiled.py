"""What a builder compiled, read from its own account of it: is every matrix product in half precision, is every
attention one fused layer?

TensorRT for RTX builds without a GPU, and without one a plan cannot be opened. But its log, at verbosity DETAILED, has
one message that lists every layer of the plan with the types of its tensors and the ONNX nodes it came from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx as onnx_format  # noqa: TID253 - this file compares with it

from affserve.train.errors import ExportError

LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[.*?\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?, Metadata: ?(?P<nodes>.*)$",
    re.MULTILINE,
)
TYPES = {"Half": "FP16", "Float": "FP32", "UInt8": "UINT8", "Int8": "INT8", "BFloat16": "BF16"}
PRODUCT_KINDS = ("gemm", "correlation", "runtime_fusion")  # the second is a convolution, the third has an Fc in it
FUSED_ATTENTION = "mha"  # in the layer's name, as in _gemm_mha_v2
LAYERS_SHOWN = 12  # in an error


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a plan."""

    name: str
    kind: str  # the builder's word
    inputs: tuple[str, ...]  # types, such as "FP16"
    outputs: tuple[str, ...]
    nodes: frozenset[str]  # of the ONNX graph

    @property
    def fuses_attention(self) -> bool:
        """Whether it is both products of an attention and the softmax between them."""
        return FUSED_ATTENTION in self.name

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices."""
        return self.fuses_attention or self.kind in PRODUCT_KINDS


def read_layers(account: str) -> list[Layer]:
    """Return the layers that a builder tells of; ExportError when it tells of none."""
    layers = [
        Layer(
            name=found["name"],
            kind=found["kind"],
            inputs=_types(found["inputs"]),
            outputs=_types(found["outputs"]),
            nodes=frozenset(re.findall(r"ONNX Layer: ([^\]\x1e]+)", found["nodes"])),
        )
        for found in LINE.finditer(account)
    ]
    if not any(layer.is_product for layer in layers):
        raise ExportError(
            "the builder's log tells of no matrix product: what it compiled cannot be judged; report this"
        )
    return layers


def _types(tensors: str) -> tuple[str, ...]:
    return tuple(TYPES.get(name, name) for name in re.findall(r"Datatype: (\w+)", tensors))


def attentions(onnx: Path) -> list[str]:
    """Return the names of a graph's softmax nodes that a matrix product follows, directly or after a cast."""
    graph = onnx_format.load(str(onnx), load_external_data=False).graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def feeds_product(name: str) -> bool:
        kinds = {node.op_type: node for node in readers.get(name, ())}
        return "MatMul" in kinds or ("Cast" in kinds and feeds_product(kinds["Cast"].output[0]))

    return [node.name for node in graph.node if node.op_type == "Softmax" and feeds_product(node.output[0])]


def summarise(layers: Sequence[Layer], softmaxes: Sequence[str]) -> dict[str, Any]:
    """Return what was compiled as plain values, for a plan's record."""
    return {
        "layers": len(layers),
        "kinds": dict(Counter(layer.kind for layer in layers).most_common()),
        "types": dict(Counter(kind for layer in layers for kind in layer.outputs).most_common()),
        "products": sum(layer.is_product for layer in layers),
        "attentions": len(softmaxes),
        "fused_attentions": sum(layer.fuses_attention for layer in layers),
    }


def check(layers: Sequence[Layer], softmaxes: Sequence[str], what: str) -> None:
    """ExportError, with the layers named, unless all products are in half precision and all attentions fused."""
    wide = [
        f"{layer.name} ({layer.kind}) multiplies {' and '.join(dict.fromkeys(layer.inputs))}, expected FP16"
        for layer in layers
        if layer.is_product and set(layer.inputs) != {"FP16"}
    ]
    fused = {node for layer in layers if layer.fuses_attention for node in layer.nodes}
    apart = [
        f"the attention of {name} is not fused: {', '.join(layer.name for layer in layers if name in layer.nodes)}"
        for name in softmaxes
        if name not in fused
    ]
    found = [*apart, *wide]
    if found:
        more = f"\n  and {len(found) - LAYERS_SHOWN} more" if len(found) > LAYERS_SHOWN else ""
        lines = "".join(f"\n  {line}" for line in found[:LAYERS_SHOWN])
        raise ExportError(f"{what} would be slow, it was not written:{lines}{more}")
