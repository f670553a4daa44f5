"""The command `affserve doctor`: the machine as export sees it, and the face detector that `infer` will use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from affserve.export.machine_findings import Finding


def doctor(
    repository: Annotated[Path | None, typer.Argument(help="Model repository to judge as well.")] = None,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Where it is to be served.")] = 8001,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Say what this machine can serve with, what would stop it, and what to do about it.

    The exit code is 1 when there is a problem; what a machine has not and need not have is "not here".
    """
    from json import dumps

    from affserve.export.doctor import examine

    diagnosis = examine(repository, {"grpc": grpc_port}, [_face_model()])
    typer.echo(dumps(diagnosis.as_dict()) if json else diagnosis.text())
    if diagnosis.problems:
        raise typer.Exit(1)


def _face_model() -> Finding:
    from affserve.client.faces.detector_file import MODEL_ENVIRONMENT, YUNET_FILE, YUNET_URL, cache_folder, named_model
    from affserve.export.machine_findings import Finding, Verdict
    from affserve.train.errors import VideoError

    try:
        path = named_model(None)
    except VideoError as error:
        return Finding(topic="Face detector", verdict=Verdict.PROBLEM, text=str(error))
    if path is None and (kept := cache_folder() / YUNET_FILE).is_file():
        path = kept
    if path is not None:
        return Finding(topic="Face detector", verdict=Verdict.GOOD, text=f"YuNet, {path}")
    return Finding(
        topic="Face detector",
        verdict=Verdict.NOTE,
        text=f"{YUNET_FILE} is not in {cache_folder()}: affserve infer fetches it once, and without a network finds "
        "fewer faces with OpenCV's Haar cascade",
        remedy=f"download {YUNET_URL} and set {MODEL_ENVIRONMENT} to it",
    )
