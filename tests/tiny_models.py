"""Small real models for the tests of export: a plain open_clip ViT, and heads with every kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from affserve.export.graphs.head import HeadGraph
from affserve.train.labels import TASKS, VALENCE_AROUSAL
from affserve.train.models.encoder import ClipEncoder, EncoderConfig
from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead, TemporalHeadConfig

SMALL: dict[str, Any] = {
    "tcn_channels": (48, 32),
    "tcn_kernels": (5, 3),
    "tcn_dilations": (1, 2),
    "width": 64,
    "layers": 1,
    "feedforward": 96,
    "mlp_width": 48,
}


def tiny_vit(layers: int = 2, **config: Any) -> ClipEncoder:
    """An encoder like ViT-B-32 but 128 wide."""
    torch.manual_seed(0)
    vision = {"image_size": 224, "layers": layers, "width": 128, "head_width": 32, "patch_size": 32}
    encoder = ClipEncoder(EncoderConfig(architecture="tiny", embed_dim=512, vision_cfg=vision, **config)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:  # norms and biases that differ from their start, so that losing one shows
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def tiny_head(**changes: Any) -> TemporalHead:
    """A head whose batch normalisation has seen something."""
    torch.manual_seed(1)
    head = TemporalHead(TemporalHeadConfig(**{**SMALL, **changes})).eval()
    _see_something(head)
    return head


def tiny_heads() -> dict[str, HeadGraph]:
    """The kinds of head graphs there are."""
    other = tiny_head(tcn_kernels=(3, 4), causal=False)
    return {
        "one-trunk": HeadGraph([tiny_head()]),
        "three-trunks": HeadGraph([tiny_head(tasks=(key,)) for key in reversed(TASKS)]),
        "ensemble": HeadGraph([HeadEnsemble([tiny_head(), other])]),
        "without-tcn": HeadGraph([tiny_head(use_tcn=False)]),
        "without-transformer": HeadGraph([tiny_head(use_encoder=False)]),
        "centred": HeadGraph([other]),
        "pre-norm": HeadGraph([tiny_head(norm="pre")]),
    }


def make_decisive(head: TemporalHead, features: NDArray[np.float32]) -> None:
    """Scale the output layers to answers that vary over these features (N, D), as a trained head's do."""
    with torch.no_grad():
        raw = head(torch.from_numpy(features)[None])
        for key, mlp in head.mlps.items():
            deviation, mean = raw[key].std(dim=(0, 1)), raw[key].mean(dim=(0, 1))
            wanted = 0.3 if key == VALENCE_AROUSAL.key else 1.0
            mlp.out.weight.mul_(wanted / deviation[:, None])
            mlp.out.bias.sub_(mean).mul_(wanted / deviation)


def _see_something(head: TemporalHead) -> None:
    for name, buffer in head.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        if name.endswith("running_var"):
            buffer.uniform_(0.3, 2)


def run_onnx(path: Path, values: NDArray[Any]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: values}))


def run_torch(module: torch.nn.Module, values: NDArray[Any]) -> list[NDArray[np.float32]]:
    with torch.inference_mode():
        answer = module(torch.from_numpy(values))
    return [one.numpy() for one in (answer if isinstance(answer, tuple) else (answer,))]
