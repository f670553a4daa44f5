"""Static INT8 for CPUs: 8 bit activations and weights in every product with a weight, float32 everywhere else.

One pass of real inputs through the graph tells the range of every activation per channel; SmoothQuant evens them out;
then QuantizeLinear and DequantizeLinear nodes (QDQ) say what is 8 bit, and ONNX Runtime fuses them into its u8s8
kernels at load. Scales are constants, so that a frame's features do not depend on what shares its batch. Activations
are unsigned (the kernels of x86 CPUs want that), weights signed, symmetric, one scale per output channel. Products of
attention among themselves stay float32: quantising everything was measured to be too coarse.

onnxruntime.quantization is not used: its calibrator keeps one range per tensor, not per channel, and would need a
second pass after smoothing; and it cannot read uint8 pixels as the quantised tensor that they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # noqa: TID253 - this file is about it
import onnxruntime as ort  # noqa: TID253 - this file calibrates with it
from numpy.typing import NDArray
from onnx import TensorProto, helper  # noqa: TID253

from affserve.export.graphs.onnx_file import drop_unread, save
from affserve.export.precision.rounding import (
    WEIGHT_STEPS,
    ChannelRange,
    activation_scale,
    signal_to_noise,
    weight_scales,
)
from affserve.export.precision.smoothing import Weights, smooth
from affserve.train.errors import ExportError

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A float32 graph, smoothed, and what is known about the activations that its weight products read."""

    model: onnx.ModelProto
    ranges: Mapping[str, ChannelRange]  # by activation
    products: tuple[str, ...]  # output names of the weight products, most sensitive to 8 bits first
    smoothed: int  # activations that were smoothed


def calibrate(source: Path, feeds: Iterable[Feed], smoothing: bool = True) -> Calibrated:
    """Run real inputs through a float32 graph and smooth it; feeds: one mapping of inputs per run."""
    model = onnx.load(source)
    _products_of_gemms(model)
    weights = Weights(model)
    products = [node for node in model.graph.node if weights.is_product(node)]
    # A product with dequantised pixels reads 8 bit numbers already.
    exact = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    widths = {node.input[0]: weights.read(node.input[1]).shape[0] for node in products if node.input[0] not in exact}
    ranges = _observe(model, widths, feeds)
    smoothed = smooth(model, ranges) if smoothing else 0
    weights = Weights(model)

    def clarity(node: onnx.NodeProto) -> float:
        seen = ranges.get(node.input[0])
        return float("inf") if seen is None else signal_to_noise(seen, weights.read(node.input[1]))

    by_noise = sorted((node for node in model.graph.node if weights.is_product(node)), key=clarity)
    return Calibrated(
        model=model, ranges=ranges, products=tuple(node.output[0] for node in by_noise), smoothed=smoothed
    )


def quantize(calibrated: Calibrated, path: Path, keep: Sequence[str] = ()) -> None:
    """Write the INT8 graph; keep: names of `calibrated.products` that stay float32."""
    model = onnx.ModelProto()
    model.CopyFrom(calibrated.model)
    weights = Weights(model)
    nodes: list[onnx.NodeProto] = []
    quantised: dict[str, str] = {}  # activation -> its dequantised form
    for node in model.graph.node:
        if weights.is_product(node) and node.output[0] not in keep:
            nodes += _quantise_activation(node, calibrated.ranges, weights, quantised)
            nodes += _quantise_weight(node, weights)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    save(model, path)


def _quantise_activation(
    node: onnx.NodeProto, ranges: Mapping[str, ChannelRange], weights: Weights, done: dict[str, str]
) -> list[onnx.NodeProto]:
    name = node.input[0]
    if name not in ranges:
        return []
    if name in done:
        node.input[0] = done[name]
        return []
    scale, zero = activation_scale(ranges[name])
    scales = [weights.add(f"{name}.scale", np.array(scale)), weights.add(f"{name}.zero", np.array(zero))]
    node.input[0] = done[name] = f"{name}.dequantised"
    return [
        helper.make_node("QuantizeLinear", [name, *scales], [f"{name}.quantised"], f"{name}.quantise"),
        helper.make_node("DequantizeLinear", [f"{name}.quantised", *scales], [done[name]], f"{name}.dequantise"),
    ]


def _quantise_weight(node: onnx.NodeProto, weights: Weights) -> list[onnx.NodeProto]:
    values = weights.read(node.input[1])  # (inputs, outputs)
    scale = weight_scales(values)  # (outputs,)
    whole = np.clip(np.rint(values / scale), -WEIGHT_STEPS, WEIGHT_STEPS).astype(np.int8)
    stem = f"{node.output[0]}.weight"
    inputs = [
        weights.add(f"{stem}.int8", whole),
        weights.add(f"{stem}.scale", scale),
        weights.add(f"{stem}.zero", np.zeros(len(scale), np.int8)),
    ]
    node.input[1] = stem
    return [helper.make_node("DequantizeLinear", inputs, [stem], f"{stem}.dequantise", axis=1)]


def _products_of_gemms(model: onnx.ModelProto) -> None:
    """Write every Gemm with a constant weight as MatMul and Add: one kind of product for all that follows."""
    weights = Weights(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        plain = settings.get("alpha", 1.0) == 1.0 == settings.get("beta", 1.0) and not settings.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in weights or not plain:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        values = weights.read(node.input[1])
        weight = weights.add(f"{node.output[0]}.product", values.T if settings.get("transB", 0) else values)
        biased = len(node.input) > 2
        product = f"{node.output[0]}.unbiased" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], f"{node.output[0]}.matmul"))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.output[0]}.add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model)


def _observe(model: onnx.ModelProto, widths: Mapping[str, int], feeds: Iterable[Feed]) -> dict[str, ChannelRange]:
    """Return the ranges of the activations named in `widths` (their numbers of channels) over all feeds.

    The graph itself reduces them, so that memory holds the activations of one run and no more.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    _watch(watched, widths)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [f"{name}.{what}" for name in widths for what in _REDUCTIONS]
    seen: list[list[NDArray[np.float32]]] = [session.run(names, dict(feed)) for feed in feeds]
    if not seen:
        raise ExportError(
            "INT8 has nothing to be calibrated on: 0 inputs given, expected a hundred face crops; name a corpus, or "
            "leave INT8 out"
        )
    columns = {name: np.stack(values) for name, values in zip(names, zip(*seen, strict=True), strict=True)}
    return {
        name: ChannelRange(
            low=columns[f"{name}.low"].min(axis=0),
            high=columns[f"{name}.high"].max(axis=0),
            mean=columns[f"{name}.mean"].mean(axis=0),
            variance=np.maximum(columns[f"{name}.power"].mean(axis=0) - columns[f"{name}.mean"].mean(axis=0) ** 2, 0),
        )
        for name in widths
    }


_REDUCTIONS = {"low": "ReduceMin", "high": "ReduceMax", "mean": "ReduceMean", "power": "ReduceMean"}


def _watch(model: onnx.ModelProto, widths: Mapping[str, int]) -> None:
    graph, weights = model.graph, Weights(model)
    axis = weights.add("observer.axis", np.array([0], np.int64))
    for name, width in widths.items():
        rows, squares = f"{name}.rows", f"{name}.squares"
        shape = weights.add(f"{name}.rows.shape", np.array([-1, width], np.int64))
        graph.node.append(helper.make_node("Reshape", [name, shape], [rows]))
        graph.node.append(helper.make_node("Mul", [rows, rows], [squares]))
        for what, operator in _REDUCTIONS.items():
            source = squares if what == "power" else rows
            graph.node.append(helper.make_node(operator, [source, axis], [f"{name}.{what}"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}.{what}", TensorProto.FLOAT, [width]))
