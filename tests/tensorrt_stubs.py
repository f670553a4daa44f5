"""TensorRT's real Python bindings on a machine without TensorRT: empty libraries in place of the ones they link to.

The bindings import over them, so every class, argument and enum member can be seen; nothing in them can be run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYSTEM_SYMBOLS = ("Py", "_Py", "_ITM_", "__", "dl", "pthread_")  # Python's and the C library's own


def bindings() -> Path | None:
    """The bindings' library, found without importing them."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    return None if spec is None or spec.origin is None else Path(spec.origin).with_name("tensorrt.so")


def why_not() -> str:
    """Why the stubs cannot be made here; empty when they can."""
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)} to make empty TensorRT libraries"
    if bindings() is None:
        return "needs the wheel tensorrt-cu13-bindings (extra affserve[dev])"
    return ""


def wanted_symbols(library: Path) -> list[str]:
    """The C functions that the bindings expect from TensorRT's libraries."""
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in listing.splitlines()]
    return [name for name in names if "@" not in name and not name.startswith(SYSTEM_SYMBOLS)]


def compile_stubs(folder: Path) -> Path:
    """Make the libraries in `folder`, each exporting every function the bindings want; all return null."""
    library = bindings()
    assert library is not None
    functions = [name for name in wanted_symbols(library) if not name.startswith("_Z")]
    assert "createInferBuilder_INTERNAL" in functions
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for name in LIBRARIES:
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run(["gcc", *options, str(source)], check=True)
    return folder


def run_over_stubs(folder: Path, program: str, *arguments: str) -> str:
    """Run a program in a Python whose `import tensorrt` is the real bindings over the stubs; return what it prints."""
    preamble = "import sys, tensorrt_bindings; sys.modules['tensorrt'] = tensorrt_bindings\n"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", preamble + program, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
