"""PyTorch modules to ONNX files, with the contract's tensor names and dynamic axes."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx  # noqa: TID253 - this file is about it
import torch  # noqa: TID253 - this file is about it
from torch import nn  # noqa: TID253

from affserve.export.contract import FEATURE_WIDTH, FEATURES, FRAMES, IMAGE_SIZE_PX, ONNX_OPSET
from affserve.export.graphs import HeadGraph
from affserve.train.clip_encoder import ClipEncoder
from affserve.train.errors import ExportError
from affserve.train.windows import WINDOW_FRAMES


def export_encoder(encoder: ClipEncoder, path: Path) -> None:
    """Write the encoder as `frames` (B, 224, 224, 3) uint8 -> `features` (B, 512) float32, for any B >= 1."""
    if encoder.config.embed_dim != FEATURE_WIDTH:
        raise ExportError(
            f"{encoder.config.architecture} puts out features of width {encoder.config.embed_dim}; the served contract "
            f"has {FEATURE_WIDTH}: choose a ViT-B or another model with embed_dim {FEATURE_WIDTH}"
        )
    # Two frames, because an example axis of length 1 would be taken for a constant.
    example = torch.zeros(2, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3, dtype=torch.uint8)
    _export(encoder, example, path, input_name=FRAMES.name, dynamic_axis=0, outputs=[FEATURES.name])


def export_head(graph: HeadGraph, path: Path) -> None:
    """Write the head as `features` (1, T, 512) float32 -> (1, T, K) float32 per task, for any 1 <= T <= 300."""
    example = torch.zeros(1, WINDOW_FRAMES, FEATURE_WIDTH)
    _export(graph, example, path, input_name=FEATURES.name, dynamic_axis=1, outputs=list(graph.tasks))


def _export(
    module: nn.Module, example: torch.Tensor, path: Path, *, input_name: str, dynamic_axis: int, outputs: list[str]
) -> None:
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[input_name],
            output_names=outputs,
            opset_version=ONNX_OPSET,
            dynamic_shapes=({dynamic_axis: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch.onnx gave no graph for {path.name}")
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
