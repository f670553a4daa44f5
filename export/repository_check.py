"""What must be true of a model repository before it is served: every model is there, and is the one that was exported.

In comes the folder that `affserve export` wrote, out comes its manifest; what is wrong is a RepositoryError that says
how to put it right.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from affserve.export.contract import MANIFEST_FILE, MODELS, ONNX_CONFIG_NAME, ONNX_FILE
from affserve.train.errors import RepositoryError

MANIFEST_SCHEMA = 1
EXPORT_COMMAND = "affserve export"
_READ_BYTES = 1 << 20


def verify_repository(root: Path, config_name: str = ONNX_CONFIG_NAME) -> dict[str, Any]:
    """Check that `root` holds every model, unaltered since export; return its manifest ({} without one).

    config_name: the configuration to be served (`configs/<config_name>.pbtxt`, else `config.pbtxt`).
    """
    if not root.is_dir():
        raise RepositoryError(f"{root} is not a folder; write a model repository with: {EXPORT_COMMAND} ...")
    served = [file for name in MODELS if (file := _served_file(root, name, config_name)) is not None]
    manifest = _read_manifest(root)
    if manifest:
        _check_hashes(root, manifest["files"], served)
    return manifest


def _served_file(root: Path, name: str, config_name: str) -> str | None:
    """Return the path, relative to `root`, of the file Triton will load for model `name`; None for an ensemble."""
    config = _read_config(root, name, config_name)
    version = _latest_version(root / name)
    if config.platform == "ensemble":
        if version is None:
            raise RepositoryError(
                f"{root} has no {name}/1/, the empty folder that Triton needs for an ensemble (copying often loses "
                f"it); make it, or write the repository again with: {EXPORT_COMMAND} ..."
            )
        return None
    relative = f"{name}/{version or 1}/{config.default_model_filename or ONNX_FILE}"
    if not (root / relative).is_file():
        raise RepositoryError(f"{root} has no {relative}; write it with: {EXPORT_COMMAND} ...")
    return relative


def _read_config(root: Path, name: str, config_name: str) -> Any:
    candidates = (root / name / "configs" / f"{config_name}.pbtxt", root / name / "config.pbtxt")
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise RepositoryError(f"{root} has no {name}/config.pbtxt; write the repository with: {EXPORT_COMMAND} ...")
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is not a Triton model configuration: {error}") from error


def _latest_version(folder: Path) -> int | None:
    """Triton serves the highest version folder."""
    return max(
        (int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal()), default=None
    )


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST_FILE
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}; write it again with: {EXPORT_COMMAND} ...") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != MANIFEST_SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise RepositoryError(
            f"{path} has schema {found!r}, this affserve reads {MANIFEST_SCHEMA}: use the affserve that wrote it, or "
            f"write the repository again with: {EXPORT_COMMAND} ..."
        )
    if not isinstance(manifest.get("files"), dict):
        raise RepositoryError(f"{path} lists no files; write it again with: {EXPORT_COMMAND} ...")
    return manifest


def _check_hashes(root: Path, expected: dict[str, str], served: list[str]) -> None:
    unlisted = [file for file in served if file not in expected]
    if unlisted:
        raise RepositoryError(
            f"{root}: {', '.join(unlisted)} would be served but {MANIFEST_FILE} does not list it: it was not put there "
            f"by {EXPORT_COMMAND}; remove it or export again"
        )
    for file, sha256 in expected.items():
        path = root / file
        if not path.is_file():
            raise RepositoryError(
                f"{root} has no {file}, which {MANIFEST_FILE} lists; write it with: {EXPORT_COMMAND} ..."
            )
        if (found := _sha256(path)) != sha256:
            raise RepositoryError(
                f"{path} was altered after export: its sha256 is {found[:12]}..., {MANIFEST_FILE} says "
                f"{sha256[:12]}...; put the exported file back or write it again with: {EXPORT_COMMAND} ..."
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
