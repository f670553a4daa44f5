"""Every use of TensorRT in Python files, checked by mypy against a stub made from the bindings themselves.

Needs importable bindings: run it over tensorrt_stubs.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from mypy import api, stubgen

# What a docstring of the bindings does not say, or says in a way that is no Python.
CORRECTIONS = (
    (r"typing\.SupportsInt", "int"),
    (r"(channel_axis: int)\)", r"\1 = ...)"),
    (r"class IHostMemory:", "class IHostMemory(typing_extensions.Buffer):"),
    (r"(->|\w:) bool\b", r"\1 builtins.bool"),  # `bool` is a type of tensors there
    (r"\A", "import builtins\n__version__: str\n"),
)
CODES = {"attr-defined", "call-arg", "call-overload", "misc", "override"}  # misc: it cannot be assigned


def check_files(paths: list[str], bindings: str = "tensorrt_bindings.tensorrt") -> list[str]:
    """Complaints of mypy that are about names and calls; arguments' types are too vague in the docstrings."""
    with tempfile.TemporaryDirectory() as folder:
        stubgen.main(["--inspect-mode", "--quiet", "-m", bindings, "-o", folder])
        text = Path(folder, *bindings.split(".")).with_suffix(".pyi").read_text()
        for wrong, right in CORRECTIONS:
            text = re.sub(wrong, right, text)
        stub = Path(folder, "tensorrt.pyi")
        stub.write_text(text)
        options = ["--config-file=", "--check-untyped-defs", "--follow-imports=skip", f"--cache-dir={folder}/cache"]
        told, _, _ = api.run([*options, "--no-error-summary", "--hide-error-context", str(stub), *paths])
    lines = [line for line in told.splitlines() if "[syntax]" in line or not line.startswith(str(stub))]
    return [line for line in lines if "[syntax]" in line or line.rpartition("[")[2].rstrip("]") in CODES]
