"""Repositories for others: the card, copies of what lies in a store, signatures, encoders for open_clip."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from conftest import blurred_noise
from tiny_server import needs_wheel
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.connection import Connection, connected
from affserve.export.contract import MANIFEST_FILE
from affserve.export.repository.card import CARD_FILE, model_card
from affserve.export.repository.manifest import read_manifest
from affserve.export.repository.placement import in_order
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import verified
from affserve.export.sharing.cache import local_repository
from affserve.export.sharing.open_clip_hub import write_open_clip
from affserve.export.sharing.signing import SIGNATURE_FILE, sign, verify
from affserve.train.errors import AffserveError, ExportError, OutputError, RepositoryError
from affserve.train.models.checkpoint import load_encoder, save_encoder
from affserve.train.models.encoder import ClipEncoder, EncoderConfig
from affserve.train.provenance import UNTAUGHT, Provenance

BUCKET = "models"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the card ---


def test_a_card_tells_what_the_manifest_knows(repository: Path) -> None:
    card = (repository / CARD_FILE).read_text()
    assert card.startswith("---\nlibrary_name: affserve\nlicense: other  # to be filled in\n")
    for told in ("drawn faces", "`clip_encoder/1/model.onnx` | fp32", "(at ", "## Limits", "## Licence", "AU12"):
        assert told in card
    manifest = read_manifest(repository)
    record = manifest.versions[manifest.served]
    head = {"metrics": {"action_units": 0.5}, "intervals": {"action_units": [0.4, 0.61]}, "data": {UNTAUGHT: ["AU7"]}}
    taught = replace(record, heads=[{**record.heads[0], **head}])
    card = model_card(replace(manifest, versions={manifest.served: taught})).decode()
    assert "action_units mean F1 0.500 [0.400, 0.610]" in card
    assert "**It saw no label of AU7: what it answers for these means nothing.**" in card


# --- copies of what lies in a store ---


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 endpoint on this machine, empty; its address is in the environment, as users have it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    named = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    for name, value in {**named, "DEFAULT_REGION": "us-east-1"}.items():
        patch.setenv(f"AWS_{name}", value)
    fsspec.filesystem("s3").mkdir(BUCKET)
    yield f"s3://{BUCKET}"
    patch.undo()
    server.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "affserve" / "repositories"


@pytest.fixture
def address(store: str, own: Path, request: pytest.FixtureRequest) -> str:
    """A repository in the store: the files of `own`."""
    place = f"{BUCKET}/{re.sub(r'[^a-z_]', '-', request.node.name)}"
    (own / "affect/1/keep.txt").touch()  # as export writes it: a store has no empty folders
    upload(own, place)
    return f"s3://{place}"


def upload(root: Path, place: str) -> None:
    files = fsspec.filesystem("s3")
    for file in in_order(root):
        files.pipe_file(f"{place}/{file}", (root / file).read_bytes())


@needs_wheel
def test_a_repository_in_a_store_is_served_from_a_verified_copy(address: str, own: Path) -> None:
    with connected(Connection(repository=address, quiet=True)) as client:
        assert client.encode(blurred_noise(2)).shape == (2, 512)
    copy = local_repository(address)
    assert snapshot(copy) == snapshot(own)

    before = copy.stat().st_mtime_ns
    fetched: list[str] = []
    assert local_repository(address, fetched.append) == copy
    assert (fetched, copy.stat().st_mtime_ns) == ([], before), "once is enough"

    (own / "temporal_head/1/model.onnx").write_bytes((own / "temporal_head/1/model.onnx").read_bytes())
    manifest = own / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"trained_on": "unknown"', '"trained_on": "other"'))
    upload(own, address.removeprefix("s3://"))
    assert local_repository(address) != copy, "another manifest is another repository"


def test_a_fetch_that_was_interrupted_goes_on(address: str, own: Path, cache: Path) -> None:
    shutil.copytree(local_repository(address), own.parent / "whole")
    (folder,) = cache.iterdir()
    (kept,) = folder.iterdir()
    part = kept.rename(folder / f"{kept.name}.part")
    head, encoder = part / "temporal_head/1/model.onnx", part / "clip_encoder/1/model.onnx"
    head.write_bytes(b"cut off")
    before = encoder.stat().st_ino
    (folder / "older.part").mkdir()
    assert snapshot(local_repository(address)) == snapshot(own.parent / "whole")
    assert (kept / "clip_encoder/1/model.onnx").stat().st_ino == before, "what was right is not fetched again"
    assert [path.name for path in folder.iterdir()] == [kept.name]


def test_processes_that_fetch_at_once_get_one_copy(address: str, own: Path) -> None:
    program = "import sys; from affserve.export.sharing.cache import local_repository as get; print(get(sys.argv[1]))"
    command = [sys.executable, "-c", program, address]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {one.communicate()[0] for one in both} == {f"{local_repository(address)}\n"}
    assert snapshot(local_repository(address)) == snapshot(own)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param(
            "temporal_head/1/model.onnx", b"another", "is not the file that its manifest.json lists", id="file"
        ),
        pytest.param("temporal_head/1/model.onnx", None, "lacks temporal_head/1/model.onnx", id="missing"),
        pytest.param(MANIFEST_FILE, None, "holds no manifest.json", id="manifest"),
    ],
)
def test_what_is_not_whole_leaves_no_copy(
    address: str, cache: Path, file: str, content: bytes | None, message: str
) -> None:
    files, place = fsspec.filesystem("s3"), f"{address}/{file}"
    files.rm(place) if content is None else files.pipe_file(place, content)
    with pytest.raises(RepositoryError, match=message):
        local_repository(address)
    assert not [path for path in cache.glob("*/*") if path.suffix != ".part"]


def test_a_store_that_cannot_be_reached_is_one_clear_error(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AffserveError, match=r"s3://nowhere/affect"):
        local_repository("s3://nowhere/affect")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(OutputError, match=r"cannot be read or written: .*credentials"):
        local_repository(f"{store}/affect")
    fsspec.filesystem("s3").clear_instance_cache()


def test_manifests_of_an_address_fetch_it_in_the_pod(address: str) -> None:
    done = CliRunner().invoke(app, ["serve", address, "--print", "kubernetes"])
    assert done.exit_code == 0, done.output
    assert f"- {address}\n" in done.stdout
    assert "PersistentVolumeClaim" not in done.stdout
    assert CliRunner().invoke(app, ["serve", address, "--watch"]).exit_code == 2


# --- signatures ---


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private key and its public half."""
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder, "own")


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = f"openssl ecparam -name prime256v1 -genkey -noout -out {private}"
    subprocess.run(["sh", "-c", f"{make} && openssl ec -in {private} -pubout -out {public}"], check=True)
    return private, public


def test_what_its_owner_signed_is_served_and_nothing_else(own: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    config = ServerConfig(repository=own, engine="cpu", verify_key=public)
    with pytest.raises(RepositoryError, match=r"has no model\.sig: sign it with: affserve export --out .* --sign KEY"):
        verified(config)
    done = CliRunner().invoke(app, ["export", "--out", str(own), "--sign", str(private)])
    assert done.exit_code == 0, done.output
    assert verified(config) is not None
    with pytest.raises(RepositoryError, match="is not what the owner of"):
        verify(own, make_key(tmp_path, "other")[1])

    for file, content in (("affect/1/model.py", b"a program"), ("temporal_head/1/model.onnx", b"another")):
        copy = tmp_path / file.replace("/", "-")
        shutil.copytree(own, copy)
        (copy / file).write_bytes(content)
        with pytest.raises(RepositoryError, match=rf"is not what the owner of .*{file.split('/')[-1]}"):
            verify(copy, public)
    (own / SIGNATURE_FILE).write_bytes(b"{}")
    with pytest.raises(RepositoryError, match="is not what the owner of"):
        verify(own, public)


def test_serve_refuses_what_is_not_signed(own: Path, keys: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, ["serve", str(own), "--grpc-port", "0", "--verify", str(keys[1])])
    assert isinstance(done.exception, RepositoryError)
    assert "has no model.sig" in str(done.exception)


def test_a_key_that_is_none_is_told(own: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    with pytest.raises(ExportError, match=r"cannot be signed with .*make keys with: openssl"):
        sign(own, tmp_path / "key")
    assert not (own / SIGNATURE_FILE).exists()


# --- encoders for open_clip ---


def test_open_clip_loads_an_encoder_and_computes_its_features(tmp_path: Path) -> None:
    import open_clip

    vision = {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32}
    config = EncoderConfig(architecture="ViT-tiny", embed_dim=512, vision_cfg=vision, quick_gelu=True)
    torch.manual_seed(0)
    save_encoder(tmp_path / "encoder", ClipEncoder(config), Provenance(trained_on="synthetic"))
    command = ["export", "--encoder", str(tmp_path / "encoder"), "--open-clip", str(tmp_path / "hub")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'hub'}")
    frames = torch.from_numpy(blurred_noise(3))
    from PIL import Image

    pixels = torch.stack([preprocess(Image.fromarray(frame.numpy())) for frame in frames])
    with torch.inference_mode():
        theirs, ours = model.eval().encode_image(pixels), load_encoder(tmp_path / "encoder")[0](frames)
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * float(ours.abs().max()))  # two ways to the same pixels


def test_a_tower_that_open_clip_does_not_know_is_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a tower of affserve's own, which open_clip does not know"):
        write_open_clip(checkpoints[0], tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
