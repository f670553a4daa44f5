"""The model of the peers, loaded from checkpoints as a laboratory's own serving script would load it: as PyTorch's
modules, or, by who is informed, as a stock ONNX export of them in an engine for CPUs.

Runs in the peers' processes. Only training code is imported: what serves is the peer's.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray

from affserve.train.models.checkpoint import load_encoder, load_head

SETTINGS_VARIABLE = "AFFSERVE_PEER"  # JSON: paths of encoder and head, threads, device, engine (empty: PyTorch)
STANDARD_INPUT = 0
KEEP_ALIVE_S = 600  # between requests of one connection: a peer waits while the others take their turns
FRAME_SHAPE = (224, 224, 3)


class PeerModel:
    """Encoder and head as PyTorch's eager modules: float32 on a CPU, autocast to float16 on a GPU."""

    def __init__(self, encoder: Path, head: Path, threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._half = self._device.type == "cuda"
        self._encoder = load_encoder(encoder)[0].to(self._device).eval()
        self._head = load_head(head)[0].to(self._device).eval()
        self.width = self._encoder.config.embed_dim

    @torch.inference_mode()
    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """frames: (N, 224, 224, 3) uint8 -> features (N, D) float32."""
        with torch.autocast(self._device.type, torch.float16, enabled=self._half):
            features = self._encoder(torch.from_numpy(frames).to(self._device))  # (N, D)
        array: NDArray[np.float32] = features.float().cpu().numpy()
        return array

    @torch.inference_mode()
    def predict(self, features: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        """features: (T, D) float32 -> (T, K) numbers by task."""
        with torch.autocast(self._device.type, torch.float16, enabled=self._half):
            answers = self._head.answers(torch.from_numpy(features)[None].to(self._device))  # (1, T, K) by task
        return {task: values[0].float().cpu().tolist() for task, values in answers.items()}

    def frames_of(self, body: bytes) -> NDArray[np.uint8]:
        """Read the body of a request as (N, 224, 224, 3) uint8."""
        return np.frombuffer(bytearray(body), np.uint8).reshape(-1, *FRAME_SHAPE)

    def features_of(self, body: bytes) -> NDArray[np.float32]:
        """Read the body of a request as (T, D) float32."""
        return np.frombuffer(bytearray(body), np.float32).reshape(-1, self.width)


class ExportedModel(PeerModel):
    """The same modules exported as they are, with PyTorch's own exporter and no option, in ONNX Runtime or OpenVINO."""

    def __init__(self, encoder: Path, head: Path, threads: int, engine: str) -> None:
        super().__init__(encoder, head, threads)
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "encoder.onnx", Path(folder) / "head.onnx"
            frames, window = torch.zeros(2, *FRAME_SHAPE, dtype=torch.uint8), torch.zeros(1, 20, self.width)
            _export(self._encoder, frames, files[0], batch_axis=0)
            _export(_Answers(self._head), window, files[1], batch_axis=1)
            self._run_encoder, self._run_head = (_session(file, engine, threads) for file in files)
        self._tasks = list(self._head.answers(window))

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """frames: (N, 224, 224, 3) uint8 -> features (N, D) float32."""
        return self._run_encoder(frames)[0]

    def predict(self, features: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        """features: (T, D) float32 -> (T, K) numbers by task."""
        return {task: one[0].tolist() for task, one in zip(self._tasks, self._run_head(features[None]), strict=True)}


class _Answers(torch.nn.Module):
    """A head whose outputs are a tuple, as ONNX has them."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.head.answers(features).values())


def _export(module: torch.nn.Module, example: torch.Tensor, path: Path, batch_axis: int) -> None:
    free = ({batch_axis: torch.export.Dim.AUTO},)
    torch.onnx.export(module.eval(), (example,), path, dynamo=True, dynamic_shapes=free, verbose=False)


def _session(path: Path, engine: str, threads: int) -> Callable[[NDArray[Any]], list[NDArray[np.float32]]]:
    if engine == "openvino":
        import openvino

        # float32, because answers are compared with float32's: OpenVINO's own choice may be bf16.
        wanted = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(path), "CPU", wanted)
        return lambda values: [np.array(one) for one in compiled([values]).values()]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: list(session.run(None, {name: values}))


def end_with_parent() -> None:
    """End this process and all that it started once whoever holds the other end of standard input is gone.

    However a benchmark ends, killed included, no peer stays behind and takes the cores of the next one.
    """

    def watch() -> None:
        # Not through sys.stdin, whose lock a forked worker would wait for in vain.
        while os.read(STANDARD_INPUT, 1):
            pass
        os.killpg(0, signal.SIGKILL)  # the group is the peer's own

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def model_of_environment() -> PeerModel:
    """Load what the environment of this process names."""
    encoder, head, threads, device, engine = json.loads(os.environ[SETTINGS_VARIABLE])
    paths = Path(encoder), Path(head)
    return ExportedModel(*paths, threads, engine) if engine else PeerModel(*paths, threads, device)
