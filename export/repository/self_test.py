"""A server proves itself before it is called ready: it answers the golden inputs as PyTorch did at export.

An engine built elsewhere, another processor's arithmetic, a file of another checkpoint: whatever changes answers is
found on the machine where it matters, with the limits that export itself applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from affserve.export.artefacts.comparing import Check, fault, feature_checks, output_checks, text
from affserve.export.contract import CLIP_ENCODER, CPU, FEATURES, FRAMES, GPU, TEMPORAL_HEAD, TEMPORAL_STREAM, ModelSpec
from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.precision.tolerances import TOLERANCES, Precision, Tolerance
from affserve.export.repository.golden import Golden, read_golden
from affserve.export.repository.manifest import Manifest, VersionRecord
from affserve.train.errors import ServerError


class SelfTestError(ServerError):
    """A server does not answer as PyTorch did."""


Ask = Callable[[ModelSpec, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


def self_test(ask: Ask, root: Path, manifest: Manifest, engine: str) -> None:
    """SelfTestError with the whole table when the answers to the golden inputs are not PyTorch's.

    ask: returns what the server, which serves the engine set `engine`, answers for a model.
    """
    record = manifest.versions[manifest.served]
    if not record.golden:  # nothing of it was exported: somebody has put it together and vouches for it
        return
    golden = read_golden(root, manifest.served)
    features = ask(CLIP_ENCODER, {FRAMES.name: golden.frames})[CLIP_ENCODER.outputs[0].name]
    outputs = ask(TEMPORAL_HEAD, {FEATURES.name: golden.window})
    tables = {
        CLIP_ENCODER.name: feature_checks(golden.features, features, _limits(record, CLIP_ENCODER.name, engine)),
        TEMPORAL_HEAD.name: output_checks(
            len(golden.window), golden.outputs, outputs, _limits(record, TEMPORAL_HEAD.name, engine)
        ),
    }
    if record.stream is not None:
        tables[TEMPORAL_STREAM.name] = _stream_checks(ask, record, golden)
    if found := fault(check for checks in tables.values() for check in checks):
        raise SelfTestError(
            f"{root} served with --engine {engine} does not answer as PyTorch did when it was exported "
            f"({found}):\n{text(tables)}\n"
            "expected every line within its limit; export it again on this machine, or serve with another --engine"
        )


def _stream_checks(ask: Ask, record: VersionRecord, golden: Golden) -> list[Check]:
    """Compare a stream of the golden window, whose answers are late by the look-ahead; it has its CPU in every set."""
    late = record.stream.lookahead_frames if record.stream is not None else 0
    length = len(golden.window) - late
    outputs = ask(TEMPORAL_STREAM, {FEATURES.name: golden.window})
    return output_checks(
        length,
        {task: values[:length] for task, values in golden.outputs.items()},
        {task: values[late:] for task, values in outputs.items()},
        _limits(record, TEMPORAL_STREAM.name, CPU),
    )


def _limits(record: VersionRecord, model: str, engine: str) -> Tolerance:
    """Return what a model has to keep to: as at export, but on a GPU never closer than half precision allows.

    There even a float32 graph has its products rounded, to TF32.
    """
    on_gpu = ENGINE_SETS[engine].on_gpu
    artefact = next(one for one in record.artefacts if one.model == model and one.use == (GPU if on_gpu else CPU))
    precision = Precision(artefact.precision)
    return TOLERANCES[Precision.FP16 if on_gpu and precision is Precision.FP32 else precision]
