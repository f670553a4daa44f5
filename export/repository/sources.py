"""The checkpoints of one export: read, checked to belong together, and described for clients and for the manifest."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affserve.export.contract import HeadDescription, StreamDescription
from affserve.export.graphs.head import HeadGraph, StreamGraph
from affserve.train.errors import ExportError
from affserve.train.labels import TASKS
from affserve.train.models.checkpoint import CONFIG_FILE, Checkpoint, check_fits, load_encoder, load_head
from affserve.train.models.encoder import ClipEncoder
from affserve.train.processing.record import chosen_processing
from affserve.train.provenance import source_commit
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES

VERSIONED_PACKAGES = ("affserve", "torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is exported."""

    encoder: ClipEncoder
    graph: HeadGraph  # every head in one
    description: HeadDescription
    encoder_record: Mapping[str, Any]  # fingerprint, commit and provenance
    head_records: tuple[Mapping[str, Any], ...]


def load_sources(encoder_path: Path, head_paths: Sequence[Path], postprocess: str | None = None) -> Sources:
    """Read an encoder and one to three heads, or ensembles of heads; an error when they do not belong together.

    postprocess: see `chosen_processing`.
    """
    encoder, encoder_checkpoint = load_encoder(encoder_path)
    loaded = [load_head(path) for path in head_paths]
    checkpoints = [checkpoint for _, checkpoint in loaded]
    for head in checkpoints:
        check_fits(head, encoder_checkpoint.fingerprint)
    graph = HeadGraph([head for head, _ in loaded])
    return Sources(
        encoder=encoder,
        graph=graph,
        description=_describe(encoder_checkpoint, graph, checkpoints, postprocess),
        encoder_record=_record(encoder_checkpoint),
        head_records=tuple(map(_record, checkpoints)),
    )


def _describe(
    encoder: Checkpoint, graph: HeadGraph, heads: Sequence[Checkpoint], postprocess: str | None
) -> HeadDescription:
    corpora = sorted({checkpoint.provenance.trained_on for checkpoint in (encoder, *heads)})
    windows = {
        (one.provenance.window_frames or WINDOW_FRAMES, one.provenance.stride_frames or STRIDE_FRAMES) for one in heads
    }
    if len(windows) > 1:
        raise ExportError(f"the heads differ in window and stride: {sorted(windows)} frames; expected the same for all")
    window, stride = windows.pop()
    labels = {key: TASKS[key].names for key in graph.tasks}
    return HeadDescription(
        labels=labels,
        window_frames=window,
        stride_frames=stride,
        trained_on="+".join(corpora),
        encoder=encoder.fingerprint,
        stream=_stream_of(graph) if graph.streams else None,
        processing=chosen_processing(postprocess, labels, [head.processing for head in heads]),
    )


def _stream_of(graph: HeadGraph) -> StreamDescription:
    """Describe heads that stream; ExportError when they do not look equally far ahead."""
    late = {config.lookahead_frames for config in graph.configs}
    if len(late) > 1:
        raise ExportError(f"the heads look {sorted(late)} frames ahead; expected the same for all")
    stream = StreamGraph(graph)  # refuses heads that remember without a limit
    return StreamDescription(
        reach_frames=max(config.reach_frames or 0 for config in graph.configs),
        lookahead_frames=late.pop(),
        state_values=stream.state_values,
    )


def _record(checkpoint: Checkpoint) -> dict[str, Any]:
    document = json.loads((checkpoint.path / CONFIG_FILE).read_text())
    return {
        "fingerprint": checkpoint.fingerprint,
        "commit": document.get("commit", "unknown"),
        "architecture": document["architecture"],
        **asdict(checkpoint.provenance),
    }


def built_with() -> dict[str, str]:
    """Return the versions of everything that has a say in an exported file, and the commit of this code."""
    return {**{name: _version(name) for name in VERSIONED_PACKAGES}, "commit": source_commit()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
