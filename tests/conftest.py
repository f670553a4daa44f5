"""What several test files share: small models with random weights, exported for real and served by the real Triton."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from restart_case import draw_nothing
from tiny_server import write_repository

from affserve.client.client import AffectClient
from affserve.export.artefacts.material import parity_only
from affserve.export.repository.exporting import CPU_FP32, export_repository
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.files import sole_user
from affserve.train.models.checkpoint import load_encoder, save_encoder, save_head
from affserve.train.models.encoder import DEMO_ARCHITECTURE, create_encoder
from affserve.train.models.temporal_head import TemporalHead, demo_head_config
from affserve.train.provenance import Provenance

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

# A shell that starts the tests in the background has them, and so all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two processes that test side by side have a core each; on two threads each they would wait for one another.
THREADS = 2 // min(2, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # of commands that tests start
torch.set_num_threads(THREADS)


# Files whose tests are few and long begin first: at the end there are short ones left, for both processes to share.
LONGEST = "annotate demo distributed export package paper_sizes servers stages tables training".split()  # noqa: SIM905


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of this run, made by whichever of the processes that test side by side comes first."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with sole_user(base, wait=True):
        if not (base / name).exists():
            make(base / f"{name}.unfinished")
            (base / f"{name}.unfinished").rename(base / name)
    return base / name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums over two threads need not be those over one; and small models gain nothing from a second one."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Trainings of tests that are about something else draw nothing: a second and a half for each."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch.setattr)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips that lies beside the checkout where the project is developed."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside this checkout: real clips are not part of the project")
    return SHARED_DATA


def blurred_noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Frames (count, 224, 224, 3) with the smooth content of photographs."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 14, 14, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (224, 224), interpolation=cv2.INTER_CUBIC) for image in small])


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An encoder and a head for all tasks, untrained."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        encoder = create_encoder(DEMO_ARCHITECTURE)
        fingerprint = save_encoder(folder / "encoder", encoder, Provenance(trained_on="synthetic"))
        head = TemporalHead(demo_head_config())
        save_head(folder / "head", head, Provenance(trained_on="synthetic", encoder=fingerprint))

    folder = made_once(tmp_path_factory, "checkpoints", make)
    return folder / "encoder", folder / "head"


@pytest.fixture(scope="session")
def repository(checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model repository of small untrained models, as `affserve export` writes it."""
    return made_once(tmp_path_factory, "repository", lambda target: export_small(checkpoints, target))


def export_small(checkpoints: tuple[Path, Path], target: Path) -> None:
    encoder, head = checkpoints
    export_repository(encoder, [head], target, material=parity_only(blurred_noise(8)), options=CPU_FP32)


@pytest.fixture(scope="session")
def stream_head(checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that streams, for the encoder of `checkpoints`: it sees 70 frames back and 2 ahead."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        head = TemporalHead(demo_head_config(context_frames=8, lookahead_frames=2))
        encoder = load_encoder(checkpoints[0])[1].fingerprint
        save_head(folder, head, Provenance(trained_on="synthetic", encoder=encoder))

    return made_once(tmp_path_factory, "stream-head", make)


@pytest.fixture(scope="session")
def stream_repository(
    checkpoints: tuple[Path, Path], stream_head: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository like `repository`, with a head that streams."""
    both = checkpoints[0], stream_head
    return made_once(tmp_path_factory, "stream-repository", lambda target: export_small(both, target))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose graphs are a few operators: loads and answers at once."""
    root = tmp_path_factory.mktemp("tiny") / "repository"
    write_repository(root)
    return root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A repository like `tiny` that the test may damage."""
    write_repository(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture(scope="session")
def server_url(repository: Path) -> Iterator[str]:
    """The gRPC address of a server for `repository`, for tests that only ask it; with HTTP, as nobody has it."""
    with TritonServer(ServerConfig(repository=repository, http_port=0)) as server:
        yield server.grpc_url


@pytest.fixture(scope="session")
def client(server_url: str) -> Iterator[AffectClient]:
    """A connected client."""
    with AffectClient(server_url) as client:
        yield client
