"""Video to rows: decode, find faces, ask the server, write results.

What Python programs use is importable from here, and loaded when it is asked for: the clients, `analyze`, and
the errors they raise, all of which are AffserveErrors. `results.read` reads a finished result.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affserve.client.async_client import AsyncAffectClient
    from affserve.client.client import AffectClient
    from affserve.client.infer.analyze import analyze, analyze_stream
    from affserve.export.server.security import CallerTls
    from affserve.train.errors import AffserveError, InferenceError, OutputError, ServerError, VideoError

__all__ = [
    "AffectClient",
    "AffserveError",
    "AsyncAffectClient",
    "CallerTls",
    "InferenceError",
    "OutputError",
    "ServerError",
    "VideoError",
    "analyze",
    "analyze_stream",
]

_PLACES = {
    "affserve.client.async_client": ("AsyncAffectClient",),
    "affserve.client.client": ("AffectClient",),
    "affserve.client.infer.analyze": ("analyze", "analyze_stream"),
    "affserve.export.server.security": ("CallerTls",),
    "affserve.train.errors": ("AffserveError", "InferenceError", "OutputError", "ServerError", "VideoError"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
