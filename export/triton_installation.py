"""Which tritonserver this machine has, and what it needs around it to run affserve's models.

A `tritonserver` on PATH (NVIDIA's container) brings its own backends. The one in the `nvidia-pytriton` wheel brings
only the python backend and no fixed layout: a private folder puts together what it looks for.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from affserve.train.errors import MissingExtraError, ServerError

WHEEL = "nvidia-pytriton"
WHEEL_MODULE = "pytriton"
WHEEL_VERSION = (2, 51)
BACKEND_MODEL = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"
PYTHON_BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
STUB = "triton_python_backend_stub"
# 25.08; older ones let anybody who reaches them run code (CVE-2025-23310, -23311, -23316, -23319, -23320, -23334).
OLDEST_PUBLIC_VERSION = (2, 60)


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A tritonserver: the binary and, when it is the wheel's, the folders of the wheel."""

    binary: Path
    version: tuple[int, ...] | None  # None: unknown until it runs
    wheel: Path | None = None  # pytriton/tritonserver: backends/python, python_backend_stubs
    libraries: Path | None = None  # nvidia_pytriton.libs

    def check_host(self, host: str) -> None:
        """Refuse to listen beyond this machine with a server that has known holes."""
        if host in ("127.0.0.1", "localhost") or (self.version or (0,)) >= OLDEST_PUBLIC_VERSION:
            return
        found = ".".join(map(str, self.version)) if self.version else "of unknown version"
        oldest = ".".join(map(str, OLDEST_PUBLIC_VERSION))
        raise ServerError(
            f"tritonserver {found} will not listen on {host}: versions before {oldest} let anybody who can reach them "
            "run code on this machine. Listen on 127.0.0.1 (behind a proxy or an SSH tunnel where others must reach "
            "it), or serve the same repository from a current Triton container"
        )


def find_installation() -> Installation:
    """Return the tritonserver on PATH, else the wheel's; MissingExtraError when there is neither."""
    if (on_path := shutil.which("tritonserver")) is not None:
        binary = Path(on_path).resolve()
        return Installation(binary=binary, version=_declared_version(binary))
    # Found, not imported: importing pytriton takes a second and prints.
    spec = importlib.util.find_spec(WHEEL_MODULE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(WHEEL, "serve")
    package = Path(spec.origin).parent
    wheel = package / "tritonserver"
    return Installation(
        binary=wheel / "bin" / "tritonserver",
        version=WHEEL_VERSION,
        wheel=wheel,
        libraries=package.parent / "nvidia_pytriton.libs",
    )


def _declared_version(binary: Path) -> tuple[int, ...] | None:
    """Return the version that NVIDIA's container states; the binary itself tells only once it serves."""
    text = os.environ.get("TRITON_SERVER_VERSION", "")
    file = binary.parents[1] / "TRITON_VERSION"
    if not text and file.is_file():
        text = file.read_text()
    parts = text.strip().split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else None


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
    python, onnxruntime = folder / "backends" / "python", folder / "backends" / "onnxruntime"
    python.mkdir(parents=True)
    onnxruntime.mkdir()
    (python / STUB).symlink_to(stub)
    for name in PYTHON_BACKEND_FILES:  # Triton loads no backend through a symbolic link
        shutil.copy(installation.wheel / "backends" / "python" / name, python / name)
    shutil.copy(BACKEND_MODEL, onnxruntime / "model.py")
    return folder / "backends"


def server_environment(installation: Installation, folder: Path) -> dict[str, str]:
    """Return the environment in which the server's Python is this Python, activated or not."""
    environment = dict(os.environ)
    # glibc would move this up to the largest buffer freed, and requests of 5 MB would fray the server's heap.
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", "262144")
    if installation.wheel is None or installation.libraries is None:
        return environment
    modules = [importlib.util.find_spec(name) for name in ("numpy", "onnxruntime")]
    if modules[1] is None:
        raise MissingExtraError("onnxruntime", "serve")
    roots = [Path(spec.origin).parents[1] for spec in modules if spec is not None and spec.origin is not None]
    _prepend(environment, "PYTHONPATH", *roots)
    _prepend(environment, "PATH", Path(sys.executable).parent)  # where the stub looks for python3 and its pyvenv.cfg
    _prepend(environment, "LD_LIBRARY_PATH", installation.libraries, *_python_library(folder))
    return environment


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
