"""What must be true of a model repository before it is served: every model is there, is the one that was exported, and
may run on this machine.

In comes the folder that `affserve export` wrote, out comes its manifest; what is wrong is a RepositoryError that says
how to put it right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from affserve.export import engine_sets
from affserve.export.contract import MANIFEST_FILE, MODELS, MODELS_WITHOUT_FILES, OPTIONAL_MODELS, ModelSpec
from affserve.export.engine import plans
from affserve.export.engine_sets import GPU_ONNX_FILE, ONNX_FILE, RTX_PLAN_FILE
from affserve.export.machine.gpus import Gpu, find_gpus, installed_tensorrt
from affserve.export.pins import RTX_MODULE
from affserve.export.repository.manifest import EXPORT_COMMAND, Manifest, read_manifest, reading
from affserve.export.repository.templates import read_config, served_version
from affserve.train.errors import RepositoryError
from affserve.train.files import file_sha256

TENSORRT_PLATFORM = "tensorrt_plan"
# What reads a model and computes it. Others, such as `python` or `pytorch`, run what the model's folder brings.
BACKENDS = frozenset({"jpeg", "onnxruntime", "openvino", "tensorrt"})
PLATFORMS = frozenset({"ensemble", TENSORRT_PLATFORM})
PROGRAM_PARAMETERS = frozenset({"EXECUTION_ENV_PATH"})  # a Python of its own, for the process behind a model


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model as Triton will find it."""

    name: str
    folder: Path  # of the version that is served
    config: Any  # model_config_pb2.ModelConfig
    config_file: str  # relative to the repository


def served_models(root: Path) -> tuple[ModelSpec, ...]:
    """Return the models that a server of this repository loads: the optional ones only where they are there."""
    return tuple(model for name, model in MODELS.items() if name not in OPTIONAL_MODELS or (root / name).is_dir())


def manifest_text(root: Path) -> bytes:
    """Return what the manifest of a repository says, which changes with all that is served; empty without one."""
    try:
        return (root / MANIFEST_FILE).read_bytes()
    except OSError:
        return b""


def verify_repository(root: Path, engine: str = engine_sets.CPU, *, trust: bool = False) -> Manifest | None:
    """Check that `root` holds every model, unaltered since export, and may be served here; return its manifest.

    engine: the configuration to be served (`configs/<engine>.pbtxt`, else `config.pbtxt`).
    trust: take one without a manifest (None is returned), or whose configurations run programs of its own.
    """
    if not root.is_dir():
        raise RepositoryError(f"{root} is not a folder; write a model repository with: {EXPORT_COMMAND} ...")
    models = [_find_model(root, model.name, engine) for model in served_models(root)]
    planned = [model for model in models if model.config.platform == TENSORRT_PLATFORM]
    gpus = find_gpus() if planned else []
    files = [file for model in models if (file := _listed_file(root, model)) is not None]
    manifest = read_manifest(root)
    if not trust:
        _check_trust(root, models, manifest)
    if manifest is not None:
        golden = manifest.versions[manifest.served].golden
        _check_hashes(root, manifest, [*(model.config_file for model in models), *files, *golden])
    for model in planned:
        check = check_rtx_plan if model.config.default_model_filename == RTX_PLAN_FILE else check_plans
        check(model.name, model.folder, gpus)
    return manifest


def _check_trust(root: Path, models: Sequence[ServedModel], manifest: Manifest | None) -> None:
    """Refuse what nothing vouches for, and configurations by which Triton would run a program from the repository."""
    if manifest is None:
        raise RepositoryError(
            f"{root} has no {MANIFEST_FILE}: nothing says who wrote its files or that they are whole. Write it with: "
            f"{EXPORT_COMMAND} ..., or, if you know where it comes from, say --trust"
        )
    for model in models:
        config = model.config
        known = config.backend in BACKENDS if config.backend else config.platform in PLATFORMS
        named = sorted(set(config.parameters) & PROGRAM_PARAMETERS)
        if named or not known:
            what = f"the parameter {named[0]}" if named else repr(config.backend or config.platform)
            raise RepositoryError(
                f"{root / model.config_file} asks for {what}, by which a repository can run programs as you; "
                f"expected {', '.join(sorted(BACKENDS))}: put back what {EXPORT_COMMAND} wrote, or, if that is meant, "
                "say --trust"
            )


def _find_model(root: Path, name: str, engine: str) -> ServedModel:
    path = config_path(root, name, engine)
    try:
        config = read_config(path)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is not a Triton model configuration: {error}") from error
    version = served_version(config, root / name) or 1
    folder = root / name / str(version)
    if name in MODELS_WITHOUT_FILES and not folder.is_dir():
        raise RepositoryError(
            f"{root} has no {name}/{version}/, the empty folder that Triton needs for a model without files (copying "
            f"often loses it); make it, or write the repository again with: {EXPORT_COMMAND} ..."
        )
    return ServedModel(name=name, folder=folder, config=config, config_file=path.relative_to(root).as_posix())


def config_path(root: Path, name: str, engine: str) -> Path:
    """Return the configuration of a model that `engine` chooses; RepositoryError when it has none."""
    candidates = (root / name / "configs" / f"{engine}.pbtxt", root / name / "config.pbtxt")
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise RepositoryError(f"{root} has no {name}/config.pbtxt; write the repository with: {EXPORT_COMMAND} ...")
    return path


def _listed_file(root: Path, model: ServedModel) -> str | None:
    """Return the path, relative to `root`, of the listed file that the server will load; None where there is none."""
    path = model.folder / (model.config.default_model_filename or ONNX_FILE)
    tuned = model.config.platform == TENSORRT_PLATFORM and path.name != RTX_PLAN_FILE
    if model.name in MODELS_WITHOUT_FILES or tuned:
        return None
    file = path.relative_to(root).as_posix()
    if not path.is_file():
        how = f"{EXPORT_COMMAND} --target {'cpu' if path.name == ONNX_FILE else 'gpu'} ..."
        if path.name == RTX_PLAN_FILE:
            how = f"pip install 'affserve[rtx]' && {EXPORT_COMMAND} ..."
        raise RepositoryError(f"{root} has no {file}; write it with: {how}")
    return file


def check_plans(model: str, folder: Path, gpus: Sequence[Gpu]) -> None:
    """RepositoryError unless every GPU has a plan in a version's folder that was made for it, from this graph.

    Triton starts an instance on every GPU.
    """
    here = {one for one in plans.COMPUTE_CAPABILITIES if (folder / plans.plan_file(one)).is_file()}
    problem = plans.missing_plan(model, here, gpus)
    for capability in sorted({gpu.compute_capability for gpu in gpus} & here):
        record = plans.verify_plan(folder / plans.plan_file(capability), folder / GPU_ONNX_FILE)
        problem = problem or plans.obstacle(record, gpus)
    if problem is not None:
        raise RepositoryError(problem)


def check_rtx_plan(model: str, folder: Path, gpus: Sequence[Gpu]) -> None:
    """RepositoryError unless every GPU here and the TensorRT for RTX here can run the plan in a version's folder."""
    record = plans.verify_plan(folder / RTX_PLAN_FILE, folder / GPU_ONNX_FILE)
    problem = plans.obstacle(record, gpus, installed_tensorrt(RTX_MODULE))
    if problem is not None:
        raise RepositoryError(problem)


def _check_hashes(root: Path, manifest: Manifest, served: Sequence[str]) -> None:
    expected = {**manifest.configs, **{k: v for one in manifest.versions.values() for k, v in one.hashes().items()}}
    unlisted = [file for file in served if file not in expected]
    if unlisted:
        raise RepositoryError(
            f"{root}: {', '.join(unlisted)} would be served but {MANIFEST_FILE} does not list it: it was not put there "
            f"by {EXPORT_COMMAND}; remove it or export again"
        )
    for file in served:
        with reading(root / file):
            found = file_sha256(root / file)
        if found != expected[file]:
            raise RepositoryError(
                f"{root / file} was altered after export: its sha256 is {found[:12]}..., {MANIFEST_FILE} says "
                f"{expected[file][:12]}...; put the exported file back or write it again with: {EXPORT_COMMAND} ..."
            )
