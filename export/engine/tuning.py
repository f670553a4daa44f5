"""What full TensorRT is told beyond the graph: how long to search, how much scratch memory, and what earlier builds
measured on this kind of GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from affserve.export.engine.builder import Settings
from affserve.export.engine.profile import EngineOptions
from affserve.export.machine.gpus import Gpu
from affserve.train.files import write_file

if TYPE_CHECKING:
    import tensorrt as trt


@contextmanager
def tuned(trt: ModuleType, options: EngineOptions, gpu: Gpu, config: trt.IBuilderConfig) -> Iterator[Settings]:
    """Set the options while a plan for `gpu` is built, then keep what was measured."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimisation_level
    file = options.timing_cache_file(gpu)
    cache, notices = load_timing_cache(config, file)
    yield Settings(flags=describe_config(trt, config, options), notices=notices)
    if file is not None:
        save_timing_cache(config, cache, file)


def load_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> tuple[trt.ITimingCache, list[str]]:
    """Attach the timing cache of earlier builds, or an empty one with a notice when it is another machine's."""
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, []
    empty = config.create_timing_cache(b"")
    config.set_timing_cache(empty, ignore_mismatch=False)
    return empty, [f"timing cache {path} is of another GPU or TensorRT version: not used, and replaced by this build's"]


def save_timing_cache(config: trt.IBuilderConfig, cache: trt.ITimingCache, path: Path) -> None:
    """Write the measurements of this build, with those another build has written meanwhile."""
    if path.is_file():
        meanwhile = config.create_timing_cache(path.read_bytes())
        if meanwhile is not None:
            cache.combine(meanwhile, ignore_mismatch=False)  # does nothing with another machine's
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, bytes(cache.serialize()))


def describe_config(trt: ModuleType, config: trt.IBuilderConfig, options: EngineOptions) -> dict[str, Any]:
    """Return the settings of a build as plain values."""
    return {
        "builder_optimization_level": config.builder_optimization_level,
        "workspace_bytes": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "hardware_compatibility": config.hardware_compatibility_level.name,
        "tf32": config.get_flag(trt.BuilderFlag.TF32),
        "timing_cache": options.timing_cache is not None,
    }
