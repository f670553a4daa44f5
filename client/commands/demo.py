"""`affserve demo`: the whole way through the house, from a generated corpus to a table of served predictions.

Every stage leaves its result in one folder under the demo's; a stage whose inputs have not changed is not run again.
The held-out videos are whole-frame films of people that neither set of the corpus holds: the served model never saw
them, and neither did the choice of its best epoch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.client.commands.demo_report import Comparison, Judged, compare
from affserve.client.faces.cropper import Croppers
from affserve.client.infer.analyze_files import Job, analyze_to_files
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.run_record import options_of
from affserve.client.video.source import FOLDER_FPS, open_source
from affserve.client.wire.frames import Frames
from affserve.export.repository.manifest import MANIFEST_SCHEMA
from affserve.export.server.config import ServerConfig
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import AffserveError
from affserve.train.files import write_file
from affserve.train.windows import Outputs

if TYPE_CHECKING:
    from affserve.train.stages.finetune import FinetuneConfig
    from affserve.train.stages.fit import FitConfig
    from affserve.train.synthetic.plan import SyntheticConfig


STAGES_FILE = "stages.json"
SUMMARY_FILE = "summary.json"
PARITY_FRAMES = 64
RATE_FRAMES = 512  # crops sent to measure the served rate

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo makes: sizes that two cores train in minutes."""

    corpus: SyntheticConfig
    encoder: FinetuneConfig
    temporal: FitConfig
    single_frame: FitConfig


def default_config() -> DemoConfig:
    """Return the demo's sizes.

    The encoder starts from random weights, so it learns from all three label sets; from CLIP's weights the paper needs
    only the expressions.
    """
    from affserve.train.labels import TASKS
    from affserve.train.models.encoder import DEMO_ARCHITECTURE
    from affserve.train.models.temporal_head import demo_head_config
    from affserve.train.stages.finetune import FinetuneConfig
    from affserve.train.stages.fit import FitConfig
    from affserve.train.synthetic.plan import SyntheticConfig

    fit = FitConfig(
        # Of the forms tried, the best on validation people: TCN and Transformer as the paper, smaller, with a limited
        # context and normalised before each layer. Attention over whole segments overfits a hundred people.
        head=demo_head_config(
            norm="pre",
            context_frames=30,
            lookahead_frames=10,
            tcn_channels=(64, 64, 64),
            width=128,
            feedforward=128,
            dropout=0.2,
        ),
        epochs=10,
        batch=4,
        lr=2e-3,
        stride=50,
    )
    return DemoConfig(
        # Many people and short videos: the encoder has to learn to see past a person's own face. 40 people choose
        # the best epoch, and 40 others judge: with fewer, chance decides which of two heads is the better one.
        corpus=SyntheticConfig(
            videos=136,
            frames_min=120,
            frames_max=200,
            validation_share=40 / 136,
            whole_frame_videos=40,
            whole_frame_frames=120,
        ),
        encoder=FinetuneConfig(
            architecture=DEMO_ARCHITECTURE, pretrained=None, tasks=tuple(TASKS), epochs=5, batch=64, lr=1e-3
        ),
        temporal=fit,
        single_frame=replace(fit, head=demo_head_config(dropout=0.2, use_tcn=False, use_encoder=False)),
    )


def run_demo(folder: Path, config: DemoConfig, *, fresh: bool = False, log: Log = print) -> Comparison:
    """Run every stage whose result is not there yet and return what the served model achieves on held-out videos.

    fresh: start over. Also writes `summary.json` into the folder.
    """
    if fresh and (folder / STAGES_FILE).exists():
        shutil.rmtree(folder)
    started = time.monotonic()
    from affserve.train.features.store import SCHEMA_VERSION as STORE_VERSION
    from affserve.train.synthetic.corpus import GENERATOR_VERSION

    stages = Stages(folder, log)
    corpus = stages.run("corpus", [GENERATOR_VERSION, asdict(config.corpus)], partial(_make_corpus, config))
    encoder = stages.run(
        "encoder", asdict(config.encoder), partial(_train_encoder, corpus, config, log), after="corpus"
    )
    features = stages.run("features", [STORE_VERSION], partial(_extract, corpus, encoder), after="encoder")
    heads = {
        name: stages.run(
            f"head-{name}",
            asdict(fit_config),
            partial(_train_head, corpus, features, fit_config, log),
            after="features",
        )
        for name, fit_config in (("temporal", config.temporal), ("single-frame", config.single_frame))
    }
    repository = stages.run(
        "repository",
        {"manifest_schema": MANIFEST_SCHEMA},
        partial(_export, corpus, encoder, heads["temporal"]),
        after="head-temporal",
    )
    comparison = _serve_and_compare(corpus, repository, heads["single-frame"], folder / "results", log)
    summary = {**comparison.as_dict(), "seconds": round(time.monotonic() - started, 1), "stages_s": stages.seconds}
    _write_json(folder / SUMMARY_FILE, summary)
    return comparison


class Stages:
    """Runs stages that each fill one folder, and remembers what each was made from."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._folder = folder
        self._log = log
        self._keys: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # of the stages that were run
        known = folder / STAGES_FILE
        if known.exists():
            self._keys = json.loads(known.read_text())
        elif folder.exists() and any(folder.iterdir()):
            raise AffserveError(f"{folder} holds what affserve demo did not make; choose another --folder")

    def run(self, name: str, inputs: Any, make: Callable[[Path], None], after: str | None = None) -> Path:
        """Return the folder `name`, filled by `make` unless it was filled from the same inputs before."""
        target = self._folder / name
        key = _digest([inputs, self._keys[after] if after else None])
        if self._keys.get(name) == key and target.exists():
            self._log(f"{name}: reusing {target}")
            return target
        self._log(f"{name}: ...")
        shutil.rmtree(target, ignore_errors=True)
        started = time.monotonic()
        make(target)
        self.seconds[name] = round(time.monotonic() - started, 1)
        self._log(f"{name}: done in {self.seconds[name]:.0f} s")
        self._keys[name] = key
        _write_json(self._folder / STAGES_FILE, self._keys)
        return target


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def _make_corpus(config: DemoConfig, target: Path) -> None:
    from affserve.train.synthetic.corpus import write_corpus

    write_corpus(target, config.corpus, workers=os.cpu_count() or 1)


def _train_encoder(corpus: Path, config: DemoConfig, log: Log, target: Path) -> None:
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.stages.finetune import finetune

    finetune(open_corpus(corpus), config.encoder, target, log, fresh="if-changed")


def _extract(corpus: Path, encoder: Path, target: Path) -> None:
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.features.extraction import extract
    from affserve.train.models.checkpoint import load_encoder

    model, checkpoint = load_encoder(encoder)
    extract(model, checkpoint.fingerprint, open_corpus(corpus), target).warn()


def _train_head(corpus: Path, features: Path, config: FitConfig, log: Log, target: Path) -> None:
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.stages.fit import fit

    fit(open_corpus(corpus), next(features.iterdir()), config, target, log, fresh="if-changed")


def _export(corpus: Path, encoder: Path, head: Path, target: Path) -> None:
    from affserve.export.artefacts.material import parity_only, sample_frames
    from affserve.export.repository.exporting import CPU_FP32, export_repository
    from affserve.train.corpus.affwild2 import open_corpus

    # FP32, because the fastest precision is found by timing: the table must not depend on what else the machine did.
    material = parity_only(sample_frames(open_corpus(corpus), PARITY_FRAMES))
    export_repository(encoder, [head], target, material=material, options=CPU_FP32)


def _serve_and_compare(corpus: Path, repository: Path, single_frame: Path, results: Path, log: Log) -> Comparison:
    """Serve the repository, send every whole-frame video through the client and score what comes back."""
    results.mkdir(parents=True, exist_ok=True)
    croppers = Croppers()
    judged: list[Judged] = []
    frames, seconds = 0, 0.0
    with SupervisedServer(ServerConfig(repository=repository)) as server, RecordingClient(server.grpc_url) as client:
        log(server.describe())
        for video in sorted((corpus / "videos").glob("*.mp4")):
            csv = results / f"{video.stem}.csv"
            outputs = OutputPaths(rows=csv, plot=None if judged else csv.with_suffix(".png"))
            cropper = croppers.cropper(already_cropped=False)
            options = options_of(cropper, croppers.faces, FOLDER_FPS)
            job = Job(source=open_source(video), cropper=cropper, outputs=outputs, options=options)
            summary = analyze_to_files(job, client)
            frames, seconds = frames + summary.frames, seconds + summary.seconds
            single = _single_frame_outputs(single_frame, client.recorded())
            judged.append(Judged(csv=csv, truth=video.with_suffix(".csv"), single_frame=single))
        rates = {"end_to_end_frames_per_s": frames / seconds, "served_crops_per_s": _served_rate(client)}
    log(f"infer: {len(judged)} videos, {frames} frames in {seconds:.0f} s")
    return compare(judged, rates, repository)


class RecordingClient(AffectClient):
    """Keeps the features that pass by, so that another head can be judged on the very same frames."""

    def encode_stream(self, chunks: Iterable[Frames]) -> Iterator[NDArray[np.float32]]:
        """Turn chunks into features as AffectClient does, and remember them."""
        self._recorded: list[NDArray[np.float32]] = []
        for features in super().encode_stream(chunks):
            self._recorded.append(features)
            yield features

    def recorded(self) -> NDArray[np.float32]:
        """Return the features (F, 512) of the last stream: of the frames with a face, in order."""
        return np.concatenate(self._recorded)


def _single_frame_outputs(checkpoint: Path, features: NDArray[np.float32]) -> Outputs:
    """Predict from features (F, 512), every frame on its own, (F, K) by task."""
    import torch

    from affserve.train.models.checkpoint import load_head
    from affserve.train.models.temporal_head import activate

    model, _ = load_head(checkpoint)
    with torch.inference_mode():
        return {key: values[0].numpy() for key, values in activate(model(torch.from_numpy(features)[None])).items()}


def _served_rate(client: AffectClient) -> float:
    frames = np.random.default_rng(0).integers(0, 256, (RATE_FRAMES, 224, 224, 3), dtype=np.uint8)
    client.encode(frames[:64])
    started = time.perf_counter()
    client.encode(frames)
    return RATE_FRAMES / (time.perf_counter() - started)


def print_progress(text: str) -> None:
    """Write a progress line to stderr."""
    print(text, file=sys.stderr, flush=True)
