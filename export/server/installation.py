"""Which tritonserver this machine has, and what it needs around it to run affserve's models.

A `tritonserver` on PATH (NVIDIA's container) brings its own backends. The one in the `nvidia-pytriton` wheel brings
only the python backend and no fixed layout: a private folder puts together what it looks for.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from affserve.export.engine_sets import NO_TELEMETRY, ONNX_RUNTIME, OPENVINO
from affserve.train.errors import MissingExtraError, ServerError

WHEEL = "nvidia-pytriton"
WHEEL_MODULE = "pytriton"
WHEEL_VERSION = (2, 51)
BACKENDS = Path(__file__).parents[1] / "backends"  # one folder for each python-based backend of ours
SHARED_MODULE = BACKENDS / "affserve_backend.py"  # what they share
BACKEND_MODEL = BACKENDS / "onnxruntime" / "model.py"
PYTHON_BACKEND_MODULE = "triton_python_backend_utils"
PYTHON_BACKEND_FILES = ("libtriton_python.so", f"{PYTHON_BACKEND_MODULE}.py")
STUB = "triton_python_backend_stub"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A tritonserver: the binary and, when it is the wheel's, the folder of the wheel."""

    binary: Path
    version: tuple[int, ...] | None  # None: unknown until it runs
    wheel: Path | None = None  # pytriton/tritonserver: backends/python, python_backend_stubs


def find_installation() -> Installation:
    """Return the tritonserver on PATH, else the wheel's; MissingExtraError when there is neither."""
    if (on_path := shutil.which("tritonserver")) is not None:
        binary = Path(on_path).resolve()
        return Installation(binary=binary, version=_declared_version(binary))
    # Found, not imported: importing pytriton takes a second and prints.
    spec = importlib.util.find_spec(WHEEL_MODULE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(WHEEL, "serve")
    wheel = Path(spec.origin).parent / "tritonserver"
    return Installation(binary=wheel / "bin" / "tritonserver", version=WHEEL_VERSION, wheel=wheel)


def _declared_version(binary: Path) -> tuple[int, ...] | None:
    """Return the version that NVIDIA's container states; the binary itself tells only once it serves."""
    text = os.environ.get("TRITON_SERVER_VERSION", "")
    file = binary.parents[1] / "TRITON_VERSION"
    if not text and file.is_file():
        text = file.read_text()
    parts = text.strip().split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else None


def own_backends() -> list[Path]:
    """Return the model.py of each python-based backend that affserve brings; its folder is the backend's name."""
    return sorted(BACKENDS.glob("*/model.py"))


def shared_modules() -> list[Path]:
    """Return the modules of ours that every stub finds: what they share, and what one is made of."""
    return sorted(BACKENDS.glob("*.py"))


def stand_ins(installation: Installation) -> dict[str, str]:
    """Return which backends of the wheel's server another one stands in for, because their engine is not installed.

    ONNX Runtime computes every graph of the set `cpu`; OpenVINO only computes some of them faster.
    """
    missing = installation.wheel is not None and importlib.util.find_spec(OPENVINO) is None
    return {OPENVINO: ONNX_RUNTIME} if missing else {}


def requirements(backend: Path) -> list[str]:
    """Return what a backend imports and Python does not bring, such as ["numpy", "onnxruntime"]."""
    tree = ast.parse(backend.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in imported}
    ours = {PYTHON_BACKEND_MODULE, *(module.stem for module in shared_modules()), ""}
    return sorted(packages - set(sys.stdlib_module_names) - ours | {"numpy"})


def lay_out_backends(installation: Installation, folder: Path) -> Path | None:
    """Build the backend directory for the wheel's server in `folder` and return it; None if the server has its own."""
    if installation.wheel is None:
        return None
    stub = installation.wheel / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / STUB
    if not stub.is_file():
        versions = sorted(path.name for path in stub.parents[1].iterdir())
        raise ServerError(
            f"{WHEEL} has no python backend for Python {sys.version_info[0]}.{sys.version_info[1]}, only for "
            f"{', '.join(versions)}: run affserve serve from one of these"
        )
    python = folder / "backends" / "python"
    python.mkdir(parents=True)
    (python / STUB).symlink_to(stub)
    for name in PYTHON_BACKEND_FILES:  # Triton loads no backend through a symbolic link
        shutil.copy(installation.wheel / "backends" / "python" / name, python / name)
    for module in shared_modules():
        shutil.copy(module, python / module.name)  # this folder is on the path of every stub
    for model in own_backends():
        (folder / "backends" / model.parent.name).mkdir()
        shutil.copy(model, folder / "backends" / model.parent.name / model.name)
    return folder / "backends"


def server_environment(installation: Installation, folder: Path) -> dict[str, str]:
    """Return the environment in which the server's Python is this Python, activated or not."""
    environment = NO_TELEMETRY | os.environ
    # glibc would move this up to the largest buffer freed, and requests of 5 MB would fray the server's heap.
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", "262144")
    if installation.wheel is None:
        return environment
    sites = {package: _site(package) for backend in own_backends() for package in requirements(backend)}
    for package in requirements(BACKEND_MODEL):
        if sites[package] is None:  # without the packages of another backend its models say what is missing
            raise MissingExtraError(package, "serve")
    roots = [site for site in sites.values() if site is not None]
    _prepend(environment, "PYTHONPATH", *roots)
    _prepend(environment, "PATH", Path(sys.executable).parent)  # where the stub looks for python3 and its pyvenv.cfg
    libraries = installation.wheel.parents[1] / "nvidia_pytriton.libs"
    _prepend(environment, "LD_LIBRARY_PATH", libraries, *_python_library(folder))
    return environment


def _site(package: str) -> Path | None:
    """Return the folder from which a package is imported; None when it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parents[1] if spec is not None and spec.origin is not None else None


def _python_library(folder: Path) -> list[Path]:
    """Return a folder with only this interpreter's shared library: its neighbours must not shadow Triton's."""
    name, place = sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LIBDIR")
    if not name or not place or ".so" not in name or not (library := Path(place, name)).is_file():
        return []
    (folder / "lib").mkdir()
    (folder / "lib" / name).symlink_to(library)
    return [folder / "lib"]


def _prepend(environment: dict[str, str], variable: str, *paths: Path) -> None:
    present = [environment[variable]] if environment.get(variable) else []
    environment[variable] = os.pathsep.join([*dict.fromkeys(map(str, paths)), *present])
