"""The commands `affserve infer` and `affserve annotate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from affserve.client.commands.options import (
    CropperOptions,
    EveryOption,
    FaceOptions,
    JobsOption,
    RawOption,
    ServerOptions,
    TlsOptions,
    TransportOption,
    spread,
)
from affserve.client.faces.settings import FaceSettings
from affserve.client.wire.transport import Transport


class CommandWithColumns(TyperCommand):
    """A command whose help ends with the columns of the result, read from the table that writes them."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the column section."""
        from affserve.client.results.rows import described_columns
        from affserve.export.contract import default_head_description

        with formatter.section("Columns of the result, as far as the model has the task"):
            formatter.write_dl(described_columns(default_head_description().labels))


@spread
def infer(
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Videos, images, folders with both (and folders below; one of images like 00001.jpg is one video), or "
            "quoted patterns, as 'clips/**/*.mp4'.",
        ),
    ],
    server: ServerOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A name with a suffix is the file for the rows of one source, any other a folder for the results of "
            "all; '-' is stdout.  [default: SOURCE.affect.csv here]"
        ),
    ] = None,
    row_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csv, parquet or jsonl; openface, elan, bids, boris or webvtt are made of a CSV, which stays "
            "beside them.  [default: by the suffix of --out, else csv]",
        ),
    ] = None,
    plot: Annotated[
        bool | None, typer.Option("--plot/--no-plot", help="Draw a PNG beside the rows.  [default: if there is a file]")
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Also write the video with faces, expressions, a valence-arousal dial and action units drawn on it, "
            "sound included: an .mp4, .mov or .mkv file, or a folder, as with --out."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave what is complete and of the same source, options and model.")
    ] = False,
    jobs: JobsOption = None,
    faces: FaceOptions,
    smooth: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the box before that stays in the reported box.")
    ] = FaceSettings.smoothing,
    croppers: CropperOptions,
    every: EveryOption = 1,
    raw: RawOption = False,
    fps: Annotated[float, typer.Option(min=0.001, help="Clock of a folder of images, in frames per second.")] = 30.0,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, help="Million pixels of a picture; one with more is refused, not decoded.")
    ] = 100.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of decoding, of face detection and of the server's models.")
    ] = None,
    transport: TransportOption = Transport.AUTO,
    tls: TlsOptions,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per source and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print neither progress nor summary.")] = False,
) -> None:
    """Estimate affect in every frame of videos, images or folders of face crops.

    Writes one row per face and frame to a CSV, Parquet or JSON-lines file, with a description of its columns. Give the
    model as --repository or the server as --url. A source that fails is reported and the others are done; the exit code
    is then 1. A run that was stopped goes on with --resume.
    """
    from affserve.client.connection import Connection
    from affserve.client.faces.cropper import Croppers
    from affserve.client.infer.run import InferOptions, infer_sources
    from affserve.client.infer.work import WorkSettings
    from affserve.train.errors import UsageError

    for source in sources:
        if "://" in source:
            raise UsageError(
                f"{source} is an address, and infer reads files: fetch it first, or watch it: affserve live {source}"
            )
    options = InferOptions(
        sources=tuple(map(Path, sources)),
        connection=Connection(**vars(server), **vars(tls), threads=threads, quiet=quiet, transport=transport),
        out=out,
        row_format=row_format,
        plot=plot,
        overlay=overlay,
        work=WorkSettings(
            croppers=Croppers(faces=FaceSettings(**vars(faces), smoothing=smooth), **vars(croppers)),
            fps=fps,
            most_pixels=int(max_megapixels * 1e6),
            resume=resume,
            raw=raw,
            every=every,
            threads=threads,
        ),
        jobs=jobs,
        json=json,
        quiet=quiet,
    )
    if not infer_sources(options):
        raise typer.Exit(1)


@spread
def annotate(
    *,
    videos: Annotated[
        str,
        typer.Argument(
            metavar="VIDEOS",
            help="A quoted pattern, as 'VIDEOS/**/*.mp4', a folder, or a .txt file with one video a line; paths, or "
            "addresses that fsspec knows, as s3://bucket/videos.",
        ),
    ],
    server: ServerOptions,
    out: Annotated[str, typer.Option(help="Folder for the results, named as the videos are; a path or an address.")],
    row_format: Annotated[str, typer.Option("--format", help="csv, parquet or jsonl.")] = "csv",
    ray: Annotated[
        str | None,
        typer.Option(
            help="Work on the machines of a Ray cluster: auto (the one that runs here), its ADDRESS, or local (one for "
            "this machine alone). All of them need the videos, the repository and the results in the same places.  "
            "[default: this machine, without Ray]"
        ),
    ] = None,
    jobs: JobsOption = None,
    give_up_after: Annotated[
        float, typer.Option(min=1, help="Seconds without a new frame, after which a video is given up.")
    ] = 600.0,
    faces: FaceOptions,
    croppers: CropperOptions,
    every: EveryOption = 1,
    raw: RawOption = False,
    keep_features: Annotated[
        bool,
        typer.Option(
            "--keep-features",
            help="Keep the features of every face beside the rows, 2 kB each, for other heads of the same encoder: "
            "'RESULTS/**/*.features.npz' in the place of VIDEOS decodes and encodes nothing.",
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each server's models.")] = None,
    transport: TransportOption = Transport.AUTO,
    tls: TlsOptions,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print neither progress nor report.")] = False,
) -> None:
    """Estimate affect in every video of a corpus, on this machine or on a Ray cluster.

    Writes the rows of `affserve infer` for each video. Run again, it does what is missing, changed, or made by another
    model or other options. What failed is in failed.csv, and the exit code is then 1.
    """
    from affserve.client.annotate.annotator import CorpusSettings
    from affserve.client.annotate.places import Results
    from affserve.client.annotate.run import AnnotateOptions, annotate_corpus
    from affserve.client.connection import Connection
    from affserve.client.faces.cropper import Croppers
    from affserve.client.faces.settings import FaceSettings
    from affserve.client.results.formats import choose_format

    settings = CorpusSettings(
        croppers=Croppers(faces=FaceSettings(**vars(faces)), **vars(croppers)),
        results=Results(address=out.rstrip("/")),
        raw=raw,
        every=every,
        resume=True,
    )
    options = AnnotateOptions(
        corpus=videos,
        settings=settings,
        connection=Connection(**vars(server), **vars(tls), threads=threads, quiet=quiet, transport=transport),
        row_format=choose_format(row_format, None),
        ray=ray,
        jobs=jobs,
        patience_s=give_up_after,
        keep_features=keep_features,
        quiet=quiet,
    )
    if not annotate_corpus(options):
        raise typer.Exit(1)
