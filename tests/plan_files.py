"""A TensorRT plan as files: two kinds of GPU, the record of a plan, and what lies beside it. No plan is ever loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from affserve.export.contract import CLIP_ENCODER
from affserve.export.engine.building import write_plan
from affserve.export.engine.plans import PlanRecord, plan_file
from affserve.export.engine_sets import GPU_ONNX_FILE
from affserve.export.machine.gpus import Gpu
from affserve.export.pins import TENSORRT_VERSION
from affserve.train.files import file_sha256

AMPERE = Gpu(
    index=0,
    name="NVIDIA GeForce RTX 3090",
    compute_capability="8.6",
    memory_bytes=24 << 30,
    driver="580.95.05",
    uuid="GPU-5f1c",
)
ADA = replace(AMPERE, index=1, name="NVIDIA GeForce RTX 4090", compute_capability="8.9", uuid="GPU-77aa")
RECORD = PlanRecord(
    model=CLIP_ENCODER.name,
    built_by="affserve",
    tensorrt=TENSORRT_VERSION,
    gpu=AMPERE.name,
    compute_capabilities=["8.6"],
    driver=AMPERE.driver,
    onnx_sha256="0" * 64,
    plan_sha256="1" * 64,
    bytes=180_000_000,
    seconds=74.2,
    flags={"builder_optimization_level": 3},
    profile={"frames": [[1, 224, 224, 3], [64, 224, 224, 3], [300, 224, 224, 3]]},
    inspector={"layers": 12, "types": {"FP16": 11, "FP32": 1}},
    parity=[{"what": "features", "figure": 0.9999, "limit": 0.9995, "at_least": True}],
)


def put_plan(folder: Path, **changed: Any) -> Path:
    """Put a graph, a plan of it for `AMPERE` and the plan's record into a folder; return the plan."""
    plan, graph = folder / plan_file("8.6"), folder / GPU_ONNX_FILE
    graph.write_bytes(b"graph")
    plan.write_bytes(b"plan")
    hashes = {"onnx_sha256": file_sha256(graph), "plan_sha256": file_sha256(plan)}
    write_plan(plan, b"plan", replace(RECORD, **{**hashes, **changed}))
    return plan
