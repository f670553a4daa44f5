"""Which engine sets this machine can run: what stands in the way of each, and what removes it.

Nothing is started; whether a set that could run also answers rightly, a server finds out (self_test.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from affserve.export import engine_sets, pins
from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.machine.gpus import driver_obstacle, find_gpus, installed_tensorrt
from affserve.export.repository.manifest import Manifest
from affserve.export.server.installation import Installation, stand_ins

CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL_CUDA = "pip uninstall onnxruntime && pip install onnxruntime-gpu"


@dataclass(frozen=True)
class Obstacle:
    """Why a set cannot run here."""

    text: str
    remedy: str  # a command, or what to do


def machine_obstacle(name: str, installation: Installation) -> Obstacle | None:
    """Return what this machine lacks for an engine set; None when it lacks nothing."""
    if not ENGINE_SETS[name].on_gpu:
        return None
    gpus = find_gpus()
    if not gpus:
        return Obstacle("this machine shows no NVIDIA GPU", "install the NVIDIA driver, or serve with --engine cpu")
    for gpu in gpus:
        if (trouble := driver_obstacle(gpu)) is not None:
            return Obstacle(trouble, "update the NVIDIA driver, or serve with --engine cpu")
    if installation.wheel is None:  # a container's Triton brings its engines along
        return (
            Obstacle("the container has no TensorRT for RTX", "--engine tensorrt") if name == engine_sets.RTX else None
        )
    return _wheel_obstacle(name)


def _wheel_obstacle(name: str) -> Obstacle | None:
    if name == engine_sets.TENSORRT and installed_tensorrt() is None:
        install = f"pip install {pins.TENSORRT_REQUIREMENT}, or serve inside {pins.image()}"
        return Obstacle("TensorRT for Python is not installed", install)
    if name == engine_sets.RTX and installed_tensorrt(pins.RTX_MODULE) is None:
        return Obstacle("TensorRT for RTX is not installed", "pip install 'affserve[rtx]'")
    if name == engine_sets.CUDA and CUDA_PROVIDER not in onnxruntime_providers():
        return Obstacle("the installed ONNX Runtime cannot use a GPU", INSTALL_CUDA)
    return None


def onnxruntime_providers() -> list[str]:
    """Return what the installed ONNX Runtime can compute with; nothing when there is none."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def notice(engine: str, manifest: Manifest | None, installation: Installation) -> str:
    """Say which models another engine than the chosen one computes, because that is not installed; empty: none."""
    if manifest is None or engine != engine_sets.CPU:
        return ""
    chosen = manifest.versions[manifest.served].computed_by()
    others = stand_ins(installation)
    models = {model: others[backend] for model, (backend, _) in chosen.items() if backend in others}
    if not models:
        return ""
    told = ", ".join(f"{model} is computed by {other}" for model, other in models.items())
    return f"{told}, because the faster {', '.join(others)} is not installed: pip install {' '.join(others)}"


def passed_over(reasons: Mapping[str, str]) -> str:
    """Say why the sets before the one that is served are not, those with the same reason together."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"not {', '.join(which)}: {reason}" for reason, which in names.items())
