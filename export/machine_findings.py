"""What this machine has to serve with, one finding at a time; nothing is started and nothing is changed."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from affserve.export import pins
from affserve.export.engine_sets import OPENVINO
from affserve.export.machine.cores import usable_cores
from affserve.export.machine.gpus import driver_obstacle, find_gpus, installed_tensorrt
from affserve.export.machine.ports import PortTakenError, choose_ports
from affserve.export.server.config import SHM_DEFAULT_BYTES, SHM_GROWTH_BYTES
from affserve.export.server.engine_choice import CUDA_PROVIDER, INSTALL_CUDA, onnxruntime_providers
from affserve.export.server.installation import WHEEL, find_installation, lay_out_backends
from affserve.export.server.probe import identify
from affserve.train.errors import MissingExtraError, ServerError

SHARED_MEMORY = Path("/dev/shm")
CPU_INFO = Path("/proc/cpuinfo")
# Per model: where it starts, and a window of 300 frames in and out.
NEEDED_SHM_BYTES = 2 * (SHM_DEFAULT_BYTES + SHM_GROWTH_BYTES)
DOCKER_TIMEOUT_S = 5.0
WHO_TIMEOUT_S = 1.0  # to say who listens on a port
# Instructions that multiply 8 bit numbers into 32 bit sums; without them ONNX Runtime's INT8 products go by way of 16
# bits, which saturate for weights of more than 7 bits.
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


class Verdict(str, Enum):
    """How a finding is meant."""

    GOOD = "ok"
    NOTE = "note"  # stops nothing that is needed
    ABSENT = "not here"  # what this machine has not and need not have
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    verdict: Verdict
    text: str
    remedy: str = ""  # a command, or what to do

    def line(self) -> str:
        """Return it as text."""
        remedy = f"\n{'':9}-> {self.remedy}" if self.remedy else ""
        return f"{self.verdict.value:<8} {self.topic}: {self.text}{remedy}"


def _gpu() -> Iterator[Finding]:
    gpus = find_gpus()
    if not gpus:
        yield Finding("GPU", Verdict.ABSENT, "the NVIDIA driver shows none (nvidia-smi): models are served on the CPU")
    for gpu in gpus:
        trouble = driver_obstacle(gpu)
        text = trouble or f"{gpu}, {gpu.memory_bytes / (1 << 30):.0f} GiB"
        yield Finding(f"GPU {gpu.index}", Verdict.PROBLEM if trouble else Verdict.GOOD, text)


def _tensorrt() -> Iterator[Finding]:
    found = installed_tensorrt()
    install = f"pip install {pins.TENSORRT_REQUIREMENT}"
    if found is None:
        text = "not installed for Python; affserve export can print a script that builds plans in the container instead"
        yield Finding("TensorRT", Verdict.ABSENT, text, "affserve export --print-trtexec ...")
    elif found != pins.TENSORRT_VERSION:
        text = f"{found}, whose plans the serving container's {pins.TENSORRT_VERSION} does not load"
        yield Finding("TensorRT", Verdict.NOTE, text, install)
    else:
        yield Finding("TensorRT", Verdict.GOOD, f"{found}, the same as in the serving container")


def _rtx() -> Iterator[Finding]:
    found = installed_tensorrt(pins.RTX_MODULE)
    install = "pip install 'affserve[rtx]'"
    if found is None:
        text = "not installed; with it affserve export builds plans for RTX 30, 40 and 50 cards, without a GPU"
        yield Finding("TensorRT for RTX", Verdict.NOTE, text, install)
    elif found != pins.RTX_VERSION:
        text = f"{found}; plans are built and run with {pins.RTX_VERSION} only"
        yield Finding("TensorRT for RTX", Verdict.PROBLEM, text, f"pip install {pins.rtx_requirement()}")
    else:
        yield Finding("TensorRT for RTX", Verdict.GOOD, f"{found}; builds plans here, and runs them on RTX cards")


def _triton() -> Iterator[Finding]:
    try:
        installation = find_installation()
        with tempfile.TemporaryDirectory() as folder:
            lay_out_backends(installation, Path(folder))
    except (MissingExtraError, ServerError) as error:
        yield Finding("Triton", Verdict.PROBLEM, str(error), "pip install 'affserve[serve]'")
        return
    version = ".".join(map(str, installation.version or ())) or "of unknown version"
    if installation.wheel is None:
        yield Finding("Triton", Verdict.GOOD, f"{version}, {installation.binary}")
        return
    yield Finding(
        "Triton",
        Verdict.GOOD,
        f"{version} of the wheel {WHEEL}, which serves by Python backends of ours and listens on this machine only",
    )
    if (numpy := importlib.metadata.version("numpy")).partition(".")[0] != "1":
        text = f"{numpy}; the wheel's Python backend was built for version 1"
        yield Finding("NumPy", Verdict.PROBLEM, text, "pip install 'numpy<2'")


def _onnxruntime() -> Iterator[Finding]:
    providers = onnxruntime_providers()
    if not providers:
        text = "not installed; the wheel's Triton computes with it"
        yield Finding("ONNX Runtime", Verdict.PROBLEM, text, "pip install 'affserve[serve]'")
        return
    # "Azure" calls a service elsewhere and is in every build.
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in providers if not name.startswith("Azure"))
    yield Finding("ONNX Runtime", Verdict.GOOD, f"computes with {names}")
    if find_gpus() and CUDA_PROVIDER not in providers:
        text = "does not use the GPU of this machine"
        yield Finding("ONNX Runtime", Verdict.NOTE, text, INSTALL_CUDA)


def _openvino() -> Iterator[Finding]:
    try:
        version = importlib.metadata.version(OPENVINO)
    except importlib.metadata.PackageNotFoundError:
        text = "not installed; ONNX Runtime computes in its place, an INT8 encoder up to a third slower"
        yield Finding("OpenVINO", Verdict.NOTE, text, "pip install openvino")
        return
    yield Finding("OpenVINO", Verdict.GOOD, f"{version}; export measures it beside ONNX Runtime and takes the faster")


def _container() -> Iterator[Finding]:
    image = pins.image()
    engine, text = docker_engine()
    yield Finding(
        "Container",
        Verdict.GOOD if engine else Verdict.ABSENT,
        f"{text}; GPU serving is pinned to {image}, which has TensorRT {pins.TENSORRT_VERSION} and needs "
        f"NVIDIA driver {pins.MINIMUM_DRIVER} or later",
        f"docker pull {image}" if engine and find_gpus() else "",
    )


def docker_engine() -> tuple[bool, str]:
    """Say whether a Docker engine answers, and how to put it in words."""
    if shutil.which("docker") is None:
        return False, "docker is not installed"
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=DOCKER_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return False, "docker is installed, but its engine does not answer"
    return True, f"Docker engine {answer.stdout.strip()}"


def _cpu() -> Iterator[Finding]:
    instructions = int8_instructions()
    cores = usable_cores()
    if instructions:
        text = f"{cores} usable cores; fast INT8 with {', '.join(instructions)}"
        yield Finding("CPU", Verdict.GOOD, text)
        return
    text = (
        f"{cores} usable cores, no instructions for 8 bit sums (VNNI or AMX): INT8 graphs may be slow here, and less "
        "exact than on a machine that has them"
    )
    remedy = "affserve export --precision fp32 ..., or export on this machine, which compares and measures"
    yield Finding("CPU", Verdict.NOTE, text, remedy)


def int8_instructions(cpu_info: Path = CPU_INFO) -> list[str]:
    """Return which of the instructions that INT8 needs this CPU has, as the kernel names them."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return [flag for flag in INT8_INSTRUCTIONS if flag in flags]


def shared_memory_finding() -> Iterator[Finding]:
    """Say whether Triton has room for its tensors."""
    free = shutil.disk_usage(SHARED_MEMORY).free
    text = f"{free >> 20} MiB free in {SHARED_MEMORY}"
    if free >= NEEDED_SHM_BYTES:
        yield Finding("Shared memory", Verdict.GOOD, text)
    else:
        text += f"; Triton's Python backend wants {NEEDED_SHM_BYTES >> 20} MiB"
        remedy = "in a container: --shm-size=1g, or shm_size in Compose; else remove old files there"
        yield Finding("Shared memory", Verdict.PROBLEM, text, remedy)


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _cpu,
    _gpu,
    _triton,
    _onnxruntime,
    _openvino,
    _tensorrt,
    _rtx,
    _container,
    shared_memory_finding,
)


def ports_finding(host: str, ports: Mapping[str, int]) -> Finding:
    """Say whether the ports are free."""
    try:
        chosen = choose_ports(host, ports)
    except PortTakenError as error:
        url = f"{host}:{ports.get('grpc')}"
        if (found := identify(url, WHO_TIMEOUT_S)) is not None:
            return Finding("Ports", Verdict.NOTE, f"{found} answers on {url} already", f"affserve status {url}")
        return Finding("Ports", Verdict.PROBLEM, str(error))
    return Finding("Ports", Verdict.GOOD, f"{', '.join(map(str, chosen.values()))} are free")
