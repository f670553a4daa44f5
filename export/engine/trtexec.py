"""The same build for users without Python's TensorRT: a script that has the serving container build its own plans.

The container's `trtexec` builds exactly what the container loads. The script needs docker with the NVIDIA container
toolkit, builds one plan for each kind of GPU of the machine, and writes the sidecars that `affserve` reads.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath

from affserve.export.engine.plans import PlanRecord
from affserve.export.engine.profile import PROFILES, EngineOptions, Profile, Shape
from affserve.export.engine_sets import GPU_ONNX_FILE
from affserve.export.pins import TENSORRT_VERSION, image

MOUNT = "/repository"  # where the container sees the repository
CACHE_MOUNT = "/timing"  # and the folder of the timing cache
NOT_COMPARED = "built by trtexec: its answers have not been compared with those of its graph"


def trtexec_command(
    onnx: PurePath, profile: Profile, plan: PurePath, options: EngineOptions, cache: PurePath | None
) -> list[str]:
    """Return the trtexec command line that builds what `build_plan` builds; cache: where it sees the timing cache."""
    smallest, optimum, largest = zip(*profile.shapes.values(), strict=True)
    return [
        "trtexec",
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        f"--minShapes={_shapes(profile, smallest)}",
        f"--optShapes={_shapes(profile, optimum)}",
        f"--maxShapes={_shapes(profile, largest)}",
        f"--builderOptimizationLevel={options.optimisation_level}",
        f"--memPoolSize=workspace:{options.workspace_bytes >> 20}",  # MiB
        "--profilingVerbosity=detailed",
        "--skipInference",
        *([f"--timingCacheFile={cache}"] if cache is not None else []),
    ]


def _shapes(profile: Profile, shapes: Sequence[Shape]) -> str:
    pairs = zip(profile.shapes, shapes, strict=True)
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in pairs)


def container_script(repository: Path, options: EngineOptions, version: int = 1) -> str:
    """Return a shell script that builds all plans of one version of a repository inside the pinned container."""
    volumes = ['--volume "$repository:' + MOUNT + '"']
    if options.timing_cache is not None:
        volumes.append(f"--volume {shlex.quote(f'{options.timing_cache.resolve().parent}:{CACHE_MOUNT}')}")
    builds = "".join(_build(profile, version, options) for profile in PROFILES)
    return _OUTER.format(
        repository=shlex.quote(str(repository.resolve())),
        volumes=" ".join(volumes),
        image=image(),
        inner=_INNER.format(builds=builds, tensorrt=TENSORRT_VERSION),
    )


def _build(profile: Profile, version: int, options: EngineOptions) -> str:
    """Return the lines that build one model's plan for the GPU in the script's variables."""
    folder = PurePath(MOUNT, profile.model.name, str(version))
    cache = None if options.timing_cache is None else PurePath(CACHE_MOUNT, options.timing_cache.name + ".sm$kind")
    # The shell's variables stand where the machine decides; $partial is not a plan's name until it is whole.
    command = trtexec_command(folder / GPU_ONNX_FILE, profile, folder / "$partial", options, cache)
    quoted = " \\\n      ".join(f'"{word}"' for word in [*command, "--device=$index"])
    return _BUILD.format(
        folder=folder, onnx=GPU_ONNX_FILE, command=quoted, model=profile.model.name, record=_record(profile, options)
    )


def _record(profile: Profile, options: EngineOptions) -> str:
    """Return the sidecar's JSON with the shell's variables where the machine decides."""
    record = PlanRecord(
        model=profile.model.name,
        built_by="trtexec",
        tensorrt="$tensorrt",
        gpu="$name",
        compute_capabilities=["$capability"],
        driver="$driver",
        onnx_sha256="$onnx_sha256",
        plan_sha256="$plan_sha256",
        bytes=0,
        seconds=0,
        flags={
            "builder_optimization_level": options.optimisation_level,
            "workspace_bytes": options.workspace_bytes,
            "timing_cache": options.timing_cache is not None,
        },
        profile=profile.as_lists(),
        notices=[NOT_COMPARED],
    )
    measured = {"bytes": "$bytes", "seconds": "$seconds"}  # numbers: the shell puts them in without quotes
    texts = {name: json.dumps(value) for name, value in asdict(record).items()} | measured
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "\n}"


_OUTER = """#!/bin/sh
# Builds the TensorRT plans of a model repository in the container that serves them, one for each kind of GPU here.
# usage: sh SCRIPT [REPOSITORY]
set -eu
repository=${{1:-{repository}}}
docker run --rm --interactive --gpus all --user "$(id -u):$(id -g)" {volumes} \\
  {image} sh -eu <<'CONTAINER'
{inner}CONTAINER
"""

_INNER = """export PATH="$PATH:/usr/src/tensorrt/bin" CUDA_DEVICE_ORDER=PCI_BUS_ID
tensorrt=${{TRT_VERSION:-$(dpkg-query --show --showformat='${{Version}}' libnvinfer11)}}
tensorrt=${{tensorrt%%[+-]*}}
if [ "$tensorrt" != "{tensorrt}" ]; then
  echo "this container has TensorRT $tensorrt, affserve expects {tensorrt}: it will refuse these plans" >&2
fi
gpus=$(mktemp)
nvidia-smi --query-gpu=index,name,compute_cap,driver_version --format=csv,noheader >"$gpus"
done_kinds=' '
while IFS=, read -r index name capability driver; do
  name=${{name# }} capability=${{capability# }} driver=${{driver# }}
  kind=$(echo "$capability" | tr -d .)
  case "$done_kinds" in *" $kind "*) continue ;; esac
  done_kinds="$done_kinds$kind "
  plan="model.sm$kind.plan" partial=".model.sm$kind.plan.partial"
{builds}done <"$gpus"
"""

_BUILD = """
  if [ -f "{folder}/{onnx}" ]; then
    echo "{model}: $plan for $name" >&2
    started=$(date +%s)
    {command} </dev/null >&2
    seconds=$(($(date +%s) - started))
    bytes=$(stat --format=%s "{folder}/$partial")
    onnx_sha256=$(sha256sum <"{folder}/{onnx}" | cut -c1-64)
    plan_sha256=$(sha256sum <"{folder}/$partial" | cut -c1-64)
    cat >"{folder}/$plan.json" <<RECORD
{record}
RECORD
    mv "{folder}/$partial" "{folder}/$plan"
  else
    echo "no {folder}/{onnx}: export the repository again, with --target all" >&2
    exit 1
  fi
"""
