"""Versions of a repository: which may stand side by side, and how to go from one to another.

Triton has one configuration per model for all its versions, so versions of one repository have the same contract:
tasks, labels, window. Going to another version changes the configurations, each in one step, and no model file.
"""

from __future__ import annotations

import dataclasses

from affserve.export.contract import MANIFEST_FILE, MODELS_WITHOUT_FILES, HeadDescription
from affserve.export.repository.card import CARD_FILE, model_card
from affserve.export.repository.manifest import Manifest
from affserve.export.repository.placement import Target, require_manifest
from affserve.export.repository.templates import config_files, config_hashes, write_configs
from affserve.train.errors import ExportError, RepositoryError

FIRST_VERSION = 1


def keep_files(version: int) -> dict[str, bytes]:
    """Return, by path, what stands in the folders of models without files.

    An object store and many ways of copying have no empty folders, and Triton wants one for each version of a model.
    """
    text = b"This model has no file of its own; Triton needs this folder.\n"
    return {f"{model}/{version}/keep.txt": text for model in MODELS_WITHOUT_FILES}


def check_same_contract(repository: Manifest, new: HeadDescription, name: str) -> None:
    """ExportError when a client of the repository's versions would not understand the new one."""
    old = repository.versions[repository.served].description()
    differences = [
        f"{what} {before} -> {after}"
        for what, before, after in (
            ("tasks", ", ".join(old.labels), ", ".join(new.labels)),
            ("labels", dict(old.labels), dict(new.labels)),
            ("window", f"{old.window_frames} frames", f"{new.window_frames} frames"),
            ("stride", f"{old.stride_frames} frames", f"{new.stride_frames} frames"),
            ("form of the head", _form(old), _form(new)),
        )
        if before != after
    ]
    if differences:
        raise ExportError(
            f"{name} serves another contract ({differences[0]}), and Triton has one configuration for all versions of "
            "a model: export to a fresh folder and serve that"
        )


def _form(head: HeadDescription) -> str:
    return "whole segments" if head.stream is None else "a stream"


def activate(target: Target, version: int) -> Manifest:
    """Have `version`, which is in the repository, served in place of the one that is; return the new manifest.

    A server that watches the repository (serve --watch) changes over by itself, others at their next start.
    """
    manifest = require_manifest(target)
    if version not in manifest.versions:
        raise RepositoryError(
            f"{target.name} has no version {version}; it has {', '.join(map(str, sorted(manifest.versions)))}"
        )
    record = manifest.versions[version]
    for artefact in record.artefacts:
        if target.size(artefact.path) != artefact.bytes:
            raise RepositoryError(
                f"{target.name}/{artefact.path} is not there or is not the file that was exported ({artefact.bytes} "
                f"bytes): export version {version} again"
            )
    with target.staging() as folder:
        write_configs(folder, record.description(), version, record.computed_by())
        files = config_files(folder)
        manifest = dataclasses.replace(manifest, served=version, configs=config_hashes(folder))
    # A version from before one of these models existed lacks its folder.
    kept = {file: content for file, content in keep_files(version).items() if target.size(file) is None}
    target.write({**kept, **files, CARD_FILE: model_card(manifest), MANIFEST_FILE: manifest.to_json()})
    return manifest
