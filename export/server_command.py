"""The command line of tritonserver: which models, which interfaces, which of them closed.

One place for the server that affserve starts and for the containers that it only describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from affserve.export.server_config import ServerConfig
from affserve.export.server_security import restricted_interfaces, restriction

# A chunk of 32 frames fits at once, and a whole window of 300 (45 MB) after growing, within the 64 MB of /dev/shm that
# containers have by default. It never shrinks.
SHM_DEFAULT_BYTES = 8 << 20
SHM_GROWTH_BYTES = 8 << 20
STUB_TIMEOUT_S = 60  # for a stub to import ONNX Runtime and read its model

Options = dict[str, object]  # name without the dashes -> value; None: an option without a value


def serving_options(config: ServerConfig, models: Path, callers: Path | None) -> Options:
    """Return the options that hold for every kind of installation.

    models: the repository as the server sees it; it holds our models and nothing else. callers: PEM that callers'
    certificates must lead to, when they need one.
    """
    return {
        "model-repository": models,
        "model-config-name": config.config_name,
        # All models once, and nobody can load another: who may load one may bring a model.py that runs as we do.
        "model-control-mode": "none",
        # The configurations are complete; completing them would start each stub twice.
        "disable-auto-complete-config": None,
        "exit-timeout-secs": max(1, round(config.drain_timeout_s)),
        **_interfaces(config),
        **_encryption(config, callers),
    }


def _interfaces(config: ServerConfig) -> Options:
    closed = restricted_interfaces(shared_memory=config.shares_memory)
    options: Options = {
        "grpc-address": config.host,
        "grpc-port": config.grpc_port,
        "grpc-restricted-protocol": restriction(closed),
        "allow-http": _word(config.serves_http),
        "allow-metrics": _word(config.metrics_port is not None),
    }
    if config.serves_http:
        options |= {
            "http-address": config.host,
            "http-port": config.http_port,
            "http-restricted-api": restriction(closed),
        }
    if config.metrics_port is not None:
        options |= {"metrics-address": config.metrics_host, "metrics-port": config.metrics_port}
    return options


def _encryption(config: ServerConfig, callers: Path | None) -> Options:
    if config.tls is None:
        return {}
    options: Options = {
        "grpc-use-ssl": _word(True),
        "grpc-server-cert": config.tls.certificate,
        "grpc-server-key": config.tls.key,
    }
    return options if callers is None else {**options, "grpc-use-ssl-mutual": _word(True), "grpc-root-cert": callers}


def _word(value: bool) -> str:
    return str(value).lower()


def arguments(options: Mapping[str, object]) -> list[str]:
    """Return options as the words of a command line."""
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]


def wheel_arguments(backends: Path, shm_prefix: str) -> list[str]:
    """Return what only the wheel's server needs: our backends, and names for its shared memory."""
    settings = {
        "shm-region-prefix-name": shm_prefix,
        "shm-default-byte-size": SHM_DEFAULT_BYTES,
        "shm-growth-byte-size": SHM_GROWTH_BYTES,
        "stub-timeout-seconds": STUB_TIMEOUT_S,
    }
    return [
        "--allow-gpu-metrics=false",
        f"--backend-directory={backends}",
        *(f"--backend-config=python,{name}={value}" for name, value in settings.items()),
    ]
