"""PyTorch modules to ONNX files, with the contract's tensor names and dynamic axes.

A file holds what a runtime needs and nothing else: no source paths, no stack traces, no weight that nothing reads. The
same checkpoint gives the same bytes. TensorRT 11's parser reads opsets 9 to 25 (NVIDIA's ONNX opset guide for 11.x).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx  # noqa: TID253 - this file is about it
import torch  # noqa: TID253 - this file is about it
from torch import nn  # noqa: TID253

from affserve.export.contract import FEATURE_WIDTH, FEATURES, FRAMES, IMAGE_SIZE_PX, NEXT_STATE, ONNX_OPSET, STATE
from affserve.export.graphs.encoder import encoder_graph
from affserve.export.graphs.head import HeadGraph, LeanHeadGraph, StreamGraph
from affserve.export.graphs.layers import Dialect
from affserve.train.errors import ExportError
from affserve.train.models.encoder import ClipEncoder
from affserve.train.windows import WINDOW_FRAMES

LARGEST_FILE_BYTES = 2**31 - 1  # of one protobuf message
# Fixed: newer exporters write newer ones, which TensorRT and Triton's runtime need not know yet. Opset 20 needs 9.
ONNX_IR_VERSION = 10


def export_encoder(encoder: ClipEncoder, path: Path, dialect: Dialect = Dialect.STANDARD) -> None:
    """Write the encoder as `frames` (B, 224, 224, 3) uint8 -> `features` (B, 512) float32, for any B >= 1."""
    if encoder.config.embed_dim != FEATURE_WIDTH:
        raise ExportError(
            f"{encoder.config.architecture} puts out features of width {encoder.config.embed_dim}; the served contract "
            f"has {FEATURE_WIDTH}: choose a ViT-B or another model with embed_dim {FEATURE_WIDTH}"
        )
    # Two frames, because an example axis of length 1 would be taken for a constant.
    example = torch.zeros(2, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3, dtype=torch.uint8)
    module = encoder_graph(encoder, dialect)
    save(_convert(module, {FRAMES.name: example}, dynamic_axis=0, outputs=[FEATURES.name]), path)


def export_head(graph: HeadGraph, path: Path, dialect: Dialect = Dialect.STANDARD) -> None:
    """Write the head as `features` (1, T, 512) float32 -> (1, T, K) float32 per task, for any 1 <= T <= 300."""
    example = torch.zeros(1, WINDOW_FRAMES, FEATURE_WIDTH)
    module = LeanHeadGraph(graph, dialect)
    save(_convert(module, {FEATURES.name: example}, dynamic_axis=1, outputs=list(graph.tasks)), path)


def export_stream(graph: HeadGraph, path: Path) -> None:
    """Write heads that stream as `features` (1, T, 512) and `state` (S,) float32 -> (1, T, K) per task and
    `next_state` (S,), for any 1 <= T <= 300.
    """
    module = StreamGraph(graph)
    examples = {
        FEATURES.name: torch.zeros(1, WINDOW_FRAMES, FEATURE_WIDTH),
        STATE.name: torch.zeros(module.state_values),
    }
    save(_convert(module, examples, dynamic_axis=1, outputs=[*module.tasks, NEXT_STATE.name]), path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check a model and write it; ExportError when it is larger than one file may be."""
    _strip(model)
    size = model.ByteSize()
    if size > LARGEST_FILE_BYTES:
        raise ExportError(
            f"{path.name} would have {size / 1e9:.1f} GB; one ONNX file holds 2.1 at most: export a smaller tower, or "
            "in fp16 only"
        )
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}; report this with the versions used") from error
    path.write_bytes(model.SerializeToString(deterministic=True))


def _convert(
    module: nn.Module, examples: Mapping[str, torch.Tensor], *, dynamic_axis: int, outputs: list[str]
) -> onnx.ModelProto:
    """Trace a module on examples by name; `dynamic_axis` of the first may have any length."""
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            module,
            tuple(examples.values()),
            input_names=list(examples),
            output_names=outputs,
            opset_version=ONNX_OPSET,
            dynamic_shapes=({dynamic_axis: torch.export.Dim.DYNAMIC}, *({} for _ in range(len(examples) - 1))),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch.onnx gave no graph for {', '.join(outputs)}")
    return program.model_proto


def _strip(model: onnx.ModelProto) -> None:
    """Drop what no runtime reads: descriptions, source positions, inferred shapes, weights without a reader."""
    model.ir_version = min(model.ir_version, ONNX_IR_VERSION)
    graph = model.graph
    everything = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in everything:
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    drop_unread(model)


def drop_unread(model: onnx.ModelProto) -> None:
    """Drop the weights that nothing reads."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [weight for weight in graph.initializer if weight.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
