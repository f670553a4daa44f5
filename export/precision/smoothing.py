"""SmoothQuant (Xiao et al. 2023), folded into the weights of an ONNX graph: exact in float32, free at run time.

Eight bits for a tensor are spent on its largest channel. Dividing channel j of an activation by s_j and multiplying row
j of the weight that reads it by s_j changes nothing but who bears the outliers; s_j = max|x_j|^a / max|w_j|^(1 - a).
The division is folded into what made the activation: a LayerNormalization's scale and bias, the value projection in
front of attention, or the product in front of a ReLU. GELU lets no factor through, so what follows it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from onnx import numpy_helper  # noqa: TID253

from affserve.export.graphs.onnx_file import drop_unread
from affserve.export.precision.rounding import Array, ChannelRange, noise_power

# a: how much of the outliers moves to the weights, the least noisy of these, or none. Where there are no outliers,
# moving them would only make the weights coarser: measured on a ViT-B-32 without any, it doubled the error.
STRENGTHS = (0.25, 0.5, 0.75)
SMALLEST = 1e-5  # activations and weights below count as this: a dead channel must not divide by zero


class Weights:
    """The initialisers of a model as arrays; changed ones get a name of their own, since equal ones may be shared."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._by_name = {one.name: one for one in model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def read(self, name: str) -> Array:
        """Return a copy of an initialiser."""
        return np.array(numpy_helper.to_array(self._by_name[name]))

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Say whether a node multiplies an activation with a weight matrix."""
        weight = self._by_name.get(node.input[1]) if node.op_type == "MatMul" else None
        return weight is not None and len(weight.dims) == 2

    def add(self, name: str, values: NDArray[np.generic]) -> str:
        """Add an initialiser and return its name."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._model.graph.initializer.append(tensor)
        self._by_name[name] = self._model.graph.initializer[-1]
        return name

    def change(self, node: onnx.NodeProto, index: int, values: Array) -> None:
        """Give a node's input other values, whoever else read the old ones."""
        name = f"{node.name or node.output[0]}.{index}.smooth"
        while name in self:  # its channels were divided on one side before, and now on the other
            name += "er"
        node.input[index] = self.add(name, values.astype(np.float32))


def smooth(model: onnx.ModelProto, ranges: MutableMapping[str, ChannelRange]) -> int:
    """Smooth every activation in `ranges` that can be and gains by it, in place, with its range; return how many.

    ranges: by the name of the activation that a weight product reads.
    """
    weights = Weights(model)
    smoothed = 0
    for fold in _folds(model, weights):
        if fold.activation in ranges:
            smoothed += _apply(fold, weights, ranges)
    drop_unread(model)
    return smoothed


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """One activation, the nodes whose channels are divided, and the products that make up for it."""

    activation: str
    divided: tuple[tuple[onnx.NodeProto, int, slice], ...]  # node, input index, which of its last axis
    products: tuple[onnx.NodeProto, ...]
    aliases: tuple[str, ...] = ()  # slices of the activation, with ranges of their own


def _apply(fold: _Fold, weights: Weights, ranges: MutableMapping[str, ChannelRange]) -> bool:
    """Smooth as strongly as it helps; say whether it does at all."""
    factors = _best_factors(ranges[fold.activation], [weights.read(node.input[1]) for node in fold.products])
    if factors is None:
        return False
    for node, index, part in fold.divided:
        values = weights.read(node.input[index])
        values[..., part] /= factors
        weights.change(node, index, values)
    for node in fold.products:
        weights.change(node, 1, weights.read(node.input[1]) * factors[:, None])
    for name in (fold.activation, *fold.aliases):
        if name in ranges:
            ranges[name] = ranges[name].divided(factors)
    return True


def _best_factors(seen: ChannelRange, weights: Sequence[Array]) -> Array | None:
    """Return the divisors (C,) that leave the least noise in all products of an activation; None: leave it alone."""
    largest = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), SMALLEST)
    rows = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), SMALLEST)
    best: Array | None = None
    least = sum(noise_power(seen, weight) for weight in weights)
    for strength in STRENGTHS:
        wanted = largest**strength / rows ** (1 - strength)
        # Loud channels are divided; quiet ones are not multiplied, which would leave them no room for what calibration
        # has not seen.
        factors = np.maximum(wanted / np.median(wanted), 1).astype(np.float32)
        noise = sum(noise_power(seen.divided(factors), weight * factors[:, None]) for weight in weights)
        if noise < least:
            best, least = factors, noise
    return best


def _folds(model: onnx.ModelProto, weights: Weights) -> Iterator[_Fold]:
    graph = _Graph(model, weights)
    outputs = {output.name for output in model.graph.output}
    for node in list(model.graph.node):
        divided = graph.divided(node)
        if not divided or node.output[0] in outputs:
            continue
        products, aliases = graph.products(node.output[0])
        if products:
            yield _Fold(activation=node.output[0], divided=divided, products=products, aliases=aliases)


class _Graph:
    """Who makes and who reads each tensor of a model."""

    def __init__(self, model: onnx.ModelProto, weights: Weights) -> None:
        self.weights = weights
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def divided(self, node: onnx.NodeProto) -> tuple[tuple[onnx.NodeProto, int, slice], ...]:
        """Return where a division of the channels of node's output goes; nothing where it cannot go anywhere."""
        everything = slice(None)
        if node.op_type == "LayerNormalization":
            return tuple((node, index, everything) for index in range(1, len(node.input)))
        if node.op_type == "MultiHeadAttention" and len(node.input) == 4:
            value = self.sole_product(node.input[2])
            if value is not None:
                width = self.weights.read(value.input[1]).shape[1]
                return (value, 1, everything), (node, 3, slice(2 * width, 3 * width))
        if node.op_type == "Relu":
            return self.divided_before_relu(node)
        return ()

    def divided_before_relu(self, node: onnx.NodeProto) -> tuple[tuple[onnx.NodeProto, int, slice], ...]:
        """max(0, x / s) = max(0, x) / s: through to the product and bias, where nothing else reads between."""
        add = self.makers.get(node.input[0])
        if add is None or add.op_type != "Add" or len(self.readers[add.output[0]]) > 1:
            return ()
        bias = next((index for index, name in enumerate(add.input) if name in self.weights), None)
        product = None if bias is None else self.sole_product(add.input[1 - bias])
        return () if bias is None or product is None else ((product, 1, slice(None)), (add, bias, slice(None)))

    def sole_product(self, name: str) -> onnx.NodeProto | None:
        """Return the weight product that makes a tensor which one node alone reads."""
        node = self.makers.get(name)
        return node if node is not None and self.weights.is_product(node) and len(self.readers[name]) == 1 else None

    def products(self, name: str) -> tuple[tuple[onnx.NodeProto, ...], tuple[str, ...]]:
        """Return the weight products that read a tensor, also by way of a slice of it; none when anything else does."""
        products: list[onnx.NodeProto] = []
        aliases: list[str] = []
        for reader in self.readers.get(name, []):
            if self.weights.is_product(reader) and reader.input[0] == name:
                products.append(reader)
            elif reader.op_type == "Slice":
                behind, further = self.products(reader.output[0])
                if not behind:
                    return (), ()
                products += behind
                aliases += [reader.output[0], *further]
            else:
                return (), ()
        return tuple(products), tuple(aliases)
