"""TensorRT's real Python bindings on a machine without TensorRT: empty libraries in place of the ones they link to.

The bindings import over them, so every class, argument and enum member can be seen; nothing in them can be run.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYSTEM_SYMBOLS = ("Py", "_Py", "_ITM_", "__", "dl", "pthread_")  # Python's and the C library's own
# What the bindings' own signatures leave out: that shapes can be iterated over and memory turned into bytes.
UNKNOWN_TO_SIGNATURES = ("arg-type", "call-overload", "var-annotated")


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
    names = [line.split()[-1] for line in _run("nm", "--dynamic", "--undefined-only", str(library)).splitlines()]
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
        _run("gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source))
    return folder


def run_over_stubs(folder: Path, program: str, *arguments: str) -> str:
    """Run a program in a Python whose `import tensorrt` is the real bindings over the stubs; return what it prints."""
    preamble = "import sys, tensorrt_bindings; sys.modules['tensorrt'] = tensorrt_bindings\n"
    return _run(sys.executable, "-c", preamble + program, *arguments, LD_LIBRARY_PATH=str(folder))


def write_types(libraries: Path, module: str = "tensorrt_bindings.tensorrt", folder: Path | None = None) -> Path:
    """Write the signatures in the bindings' own docstrings as `types/tensorrt.pyi`; return the folder of it."""
    folder = folder or libraries
    made = ("--inspect-mode", "--quiet", "--module", module, "--output", str(folder))
    _run(sys.executable, "-c", "from mypy.stubgen import main; main()", *made, LD_LIBRARY_PATH=str(libraries))
    # It takes the member `bool` of an enum for the type, and what may be converted to int for what is handed over.
    text = (folder / f"{module.replace('.', '/')}.pyi").read_text().replace("typing.SupportsInt", "int")
    lines = ["__version__: str", *re.sub(r"^bool: .*\n", "", text, flags=re.MULTILINE).splitlines()]
    while (number := _wrong_line(lines)) is not None:  # a default before an argument without one
        lines[number] = re.sub(r"\(.*", "(self, *args, **kwargs): ...", lines[number])
    (folder / "types").mkdir()
    (folder / "types/tensorrt.pyi").write_text("\n".join(lines))
    return folder / "types"


def _wrong_line(lines: list[str]) -> int | None:
    try:
        ast.parse("\n".join(lines))
    except SyntaxError as error:
        return (error.lineno or 1) - 1
    return None


def type_errors(types: Path, *paths: Path) -> list[str]:
    """What mypy finds wrong with these files when TensorRT is what `write_types` wrote, as "file:line: error: ..."."""
    options = ["--config-file=", "--follow-imports=skip", "--ignore-missing-imports", f"--cache-dir={types / 'cache'}"]
    options += [f"--disable-error-code={code}" for code in UNKNOWN_TO_SIGNATURES]
    command = [sys.executable, "-m", "mypy", "--check-untyped-defs", *options, *map(str, paths)]
    environment = {**os.environ, "MYPYPATH": str(types)}
    done = subprocess.run(command, cwd=types, env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if "tensorrt.pyi" not in line and ": error: " in line]


def _run(*command: str, **variables: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
