"""What a tritonserver's log tells: which engine computes, and what went wrong."""

from __future__ import annotations

import re

TAIL_LINES = 8
SIGNAL = 128  # what an exit code is above that tells of a signal
_PORT_TAKEN = re.compile(r"already in use|failed to bind|Failed to add port", re.IGNORECASE)
_TROUBLE = re.compile(r"^(?:E\d{4} |error:|\w*(?:Error|Exception)\b)|: error while loading|tritonserver: |bash: ")
_HARMLESS = re.compile("CudaDriverHelper has not|unable to create stream")  # every machine without a GPU
_UNLOADED = re.compile(r"failed to load '(\w+)' version \d+: (.*?)\"?$", re.MULTILINE)
_TRACEBACK = re.compile(r"(?:\\n)+At:.*")  # where in the backend, on the same line
_STAMP = re.compile(r"^E\d{4} \S+ \d+ [\w.]+:\d+\] ")
_ENGINE = re.compile(r"(\w+) runs on ([^\"\n]+)")
_ADVICE = {
    "OpenVINO cannot load": "write the file again with: affserve export ...",
    "ONNX Runtime cannot load": "write the file again with: affserve export ...",
    "KIND_GPU": "serve where there is a GPU, or from the CPU configurations with --engine cpu",
    "No space left on device": "give /dev/shm more room (of a container: --shm-size=1g, or shm_size in Compose)",
    "Too many open files": "allow more open files, with ulimit -n 4096 before the command",
    "Cannot allocate memory": "give the server more memory, or fewer --instances",
    "libpython": "install the shared library of this Python, or use a Python that was built with one",
    "No module named": "install what is missing: pip install 'affserve[serve]'",
}


def engines(log: str) -> dict[str, str]:
    """Return what each model runs on, such as {"clip_encoder": "OpenVINO 2026.4.1 CPU"}; a container does not tell."""
    return dict(_ENGINE.findall(log))


def errors(log: str) -> list[str]:
    """Return the messages that were logged as errors and are any, without time and place."""
    return [
        _STAMP.sub("", line).strip('"')
        for line in log.splitlines()
        if _STAMP.match(line) and not _HARMLESS.search(line)
    ]


def gave_up(log: str) -> bool:
    """Say whether a server that is not ready yet will never be: it unloads the models it could load."""
    return "All models are stopped, unloading models" in log


def port_was_taken(log: str) -> bool:
    """Say whether the server could not listen."""
    return _PORT_TAKEN.search(log) is not None


def tail(log: str) -> str:
    """Return why models could not be loaded; else the last lines that tell of trouble, else simply the last lines."""
    lines = [_TRACEBACK.sub("", line) for line in log.splitlines()]
    unloaded = [f"{model}: {why}" for line in lines for model, why in _UNLOADED.findall(line)]
    trouble = [
        _STAMP.sub("", line).strip('"') for line in lines if _TROUBLE.search(line) and not _HARMLESS.search(line)
    ]
    kept = dict.fromkeys(unloaded or trouble or lines)
    return "\n".join(f"  {line}" for line in list(kept)[-TAIL_LINES:])


def advice(log: str, exit_code: int | None = None) -> str:
    """Return what to do about the trouble a log tells of, empty where that is not known.

    exit_code: of a server that has ended.
    """
    known = [what_to_do for sign, what_to_do in _ADVICE.items() if sign in log]
    if not known and (exit_code or 0) > SIGNAL:
        return f"signal {(exit_code or 0) - SIGNAL} ended it: is there enough memory (free -h, ulimit -v)?"
    return "; ".join(known) or ("export the repository again if it was altered" if _UNLOADED.search(log) else "")
