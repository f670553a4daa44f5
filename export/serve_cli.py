"""The command `affserve serve`: serves a model repository until it is interrupted, or prints how others do."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from affserve.train.signals import handled

if TYPE_CHECKING:
    from affserve.export.server.config import ServerConfig
    from affserve.export.server.security import ServerTls

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")]
CLUSTER_OPTIONS = ("namespace", "image", "replicas", "most_replicas", "gpus", "prometheus")
Form = Literal["compose", "kubernetes", "kserve", "grafana"]


def _of_clusters(help: str, **more: Any) -> Any:
    """Return an option that only manifests for clusters have."""
    return typer.Option(help=f"Of --print kubernetes and kserve: {help}", **more)


def serve(
    repository: Annotated[
        str,
        typer.Argument(
            metavar="PATH|URL", help="Model repository, as written by affserve export; of s3://... a verified copy."
        ),
    ],
    grpc_port: Port = 8001,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Also answer HTTP, which affserve itself never uses; 0: any free port. Whoever reaches it can crash "
            "Triton 2.51, and there is none beside TLS.  [default: off]",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Prometheus metrics; 0: any free port.  [default: off]")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on, or unix:PATH, a socket file that only you can open. Beyond this machine only a "
            "server without known holes may listen; the wheel's Triton 2.51 (October 2024) has some."
        ),
    ] = "127.0.0.1",
    i_know: Annotated[
        bool,
        typer.Option(
            "--i-know",
            help="Listen on --host all the same: 2.51 predates NVIDIA's security bulletins of August 2025 and May "
            "2026, and whoever reaches it may run code on this machine.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Change over within seconds when export adds, replaces or activates a version."),
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Serve what no manifest vouches for: its files may run programs as you.")
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="PEM public key: serve only what its owner signed, with export --sign."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of the server: gRPC is encrypted.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of --tls-cert.")] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM authorities: callers need a certificate of one of them (mTLS). The server's own certificate must "
            "then be good for clients, too: its supervisor calls it as they do."
        ),
    ] = None,
    shared_memory: Annotated[
        bool | None,
        typer.Option(
            "--shared-memory/--no-shared-memory",
            help="Whether callers may hand over tensors in /dev/shm. Who may can have others' frames analysed, and "
            "crash Triton 2.51: where strangers have accounts, say no, or --host unix:PATH.  "
            "[default: only if nobody but this machine can call]",
        ),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Chunks the encoder computes at once, on each GPU where there are some.  [default: one for every 8 "
            "cores; 4 of --engine cuda, 1 of rtx and tensorrt]",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of each instance of a model on a CPU.  [default: the physical cores, shared out]"),
    ] = None,
    engine: Annotated[
        Literal["auto", "cpu", "cuda", "rtx", "tensorrt"],
        typer.Option(help="What computes; auto: the fastest that this machine can run and that answers rightly."),
    ] = "auto",
    log: Annotated[
        Path | None,
        typer.Option(help="Append events as JSON lines; Triton's own log is beside it. Both start over at 8 MiB."),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--print",
            help="Start nothing, print how a container or a cluster serves the repository with these options: a file "
            "for Docker Compose, manifests for Kubernetes or KServe, a Grafana dashboard.",
        ),
    ] = None,
    namespace: Annotated[
        str | None, _of_clusters(help="namespace of the cluster, also of grafana.  [default: affserve]")
    ] = None,
    image: Annotated[str | None, _of_clusters(help="container image.  [default: the pinned Triton]")] = None,
    replicas: Annotated[int | None, _of_clusters(min=1, help="the fewest pods.  [default: 1]")] = None,
    most_replicas: Annotated[
        int | None, _of_clusters(min=1, help="the most; as many as the fewest: nothing scales.  [default: 4 times]")
    ] = None,
    gpus: Annotated[
        int | None, _of_clusters(min=1, help="GPUs of each pod.  [default: 1 of --engine tensorrt, cuda]")
    ] = None,
    prometheus: Annotated[
        str | None, _of_clusters(help="address of Prometheus, which KEDA asks.  [default: the Prometheus operator's]")
    ] = None,
) -> None:
    """Serve a model repository with Triton until interrupted; restart it when it fails.

    Prints one line when every model answers. Events after that are JSON lines on stderr. Loading models, logging and
    tracing are closed to callers.
    """
    told = locals()
    from affserve.export.server.config import ServerConfig

    told["repository"], told["verify_key"] = _local(repository, watch=watch), verify
    told["tls"], told["accept_known_holes"] = _tls(tls_cert, tls_key, tls_ca), i_know
    told["log"] = None if log is None else log.with_name(f"{log.name}.triton.log")
    config = ServerConfig(**{field.name: told[field.name] for field in fields(ServerConfig) if field.name in told})
    asked = {name: told[name] for name in CLUSTER_OPTIONS if told[name] is not None}
    if form in (None, "compose") and asked:
        raise typer.BadParameter(
            f"--{next(iter(asked)).replace('_', '-')} is for --print kubernetes, kserve or grafana"
        )
    if form is None:
        _serve(config, log)
    else:
        storage = repository if "://" in repository else None
        typer.echo(_printed(config, form, {**asked, "storage": storage}), nl=False)


def _local(repository: str, *, watch: bool) -> Path:
    from affserve.export.sharing.cache import local_repository

    found = local_repository(repository, lambda text: typer.echo(f"note: {text}", err=True))
    if watch and str(found) != repository:
        raise typer.BadParameter("a copy does not change: --watch is for a folder", param_hint="--watch")
    return found


def _printed(config: ServerConfig, form: Form, asked: dict[str, Any]) -> str:
    from affserve.export.deployment.compose import compose_file
    from affserve.export.deployment.dashboard import grafana_dashboard
    from affserve.export.deployment.kserve import kserve_manifests
    from affserve.export.deployment.kubernetes import kubernetes_manifests
    from affserve.export.deployment.pod import ClusterOptions

    if form == "compose":
        return compose_file(config)
    options = ClusterOptions(**asked)
    if form == "grafana":
        return grafana_dashboard(options.namespace)
    return (kubernetes_manifests if form == "kubernetes" else kserve_manifests)(config, options)


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise typer.BadParameter("TLS needs both --tls-cert and --tls-key")
    from affserve.export.server.security import ServerTls

    return ServerTls(certificate=certificate, key=key, client_ca=client_ca)


def _serve(config: ServerConfig, log: Path | None) -> None:
    from affserve.export.server.events import EventLog
    from affserve.export.server.supervisor import SupervisedServer

    events = EventLog(log)
    events.record({"event": "starting", "repository": str(config.repository)})
    with _until_interrupted(), SupervisedServer(config, on_event=events) as server:
        typer.echo(server.describe())
        events.record({"event": "ready", "url": server.grpc_url, "engine": server.engine, "pid": server.pid})
        try:
            server.wait()
        except KeyboardInterrupt as interruption:
            events.record({"event": "stopping", "reason": str(interruption)})
            raise
    events.record({"event": "stopped"})


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """Leave the block at the first signal that ends it, its clean-up undisturbed by further ones.

    The end of the terminal (SIGHUP) is one, unless the command was started to survive it (nohup).
    """
    ending = [one for one in ENDING_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]

    def interrupt(number: int, _frame: object) -> None:
        for one in ending:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    with contextlib.suppress(KeyboardInterrupt), handled(*ending, by=interrupt):
        yield
