"""The graphs that are exported: PyTorch's numbers, for any batch and any length, in valid, lean, reproducible files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import blurred_noise
from tiny_models import run_onnx, run_torch, tiny_head, tiny_heads, tiny_vit

from affserve.export.artefacts.parity import adversarial_frames
from affserve.export.artefacts.sessions import open_graph
from affserve.export.artefacts.streaming import streamed
from affserve.export.contract import ONNX_OPSET
from affserve.export.graphs import onnx_file
from affserve.export.graphs.encoder import is_plain_vit
from affserve.export.graphs.head import HeadGraph
from affserve.export.graphs.layers import Dialect
from affserve.export.graphs.onnx_file import export_encoder, export_head, export_stream
from affserve.train.errors import ExportError
from affserve.train.models.encoder import ClipEncoder, create_encoder
from affserve.train.models.temporal_head import HeadEnsemble

DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda one: one.value)
HEADS = tiny_heads()
WINDOW = 2 * np.random.default_rng(0).standard_normal((1, 300, 512)).astype(np.float32)


@DIALECTS
@pytest.mark.parametrize("quick_gelu", [False, True], ids=["gelu", "quick-gelu"])
def test_lean_encoder_is_the_trained_one(tmp_path: Path, dialect: Dialect, quick_gelu: bool) -> None:
    encoder = tiny_vit(quick_gelu=quick_gelu)
    assert is_plain_vit(encoder.visual)
    export_encoder(encoder, tmp_path / "e.onnx", dialect)
    for frames in (blurred_noise(5), blurred_noise(1, seed=3), adversarial_frames()):
        np.testing.assert_allclose(
            run_onnx(tmp_path / "e.onnx", frames)[0], run_torch(encoder, frames)[0], atol=2e-5, rtol=1e-5
        )


def test_tower_that_is_no_plain_vit_is_exported_as_it_stands(tmp_path: Path) -> None:
    averaged = tiny_vit()
    averaged.visual.pool_type = "avg"  # reads every token: the class token alone would be wrong
    assert not is_plain_vit(averaged.visual)
    for name, encoder in {"averaged": averaged, "demo": create_encoder("affserve-demo").eval()}.items():
        export_encoder(encoder, tmp_path / name)
        frames = blurred_noise(3)
        np.testing.assert_allclose(run_onnx(tmp_path / name, frames)[0], run_torch(encoder, frames)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "dialect"),
    [*((kind, Dialect.STANDARD) for kind in HEADS), ("three-trunks", Dialect.CPU), ("ensemble", Dialect.CPU)],
    ids=str,
)
def test_lean_head_is_the_trained_one_at_every_length(tmp_path: Path, kind: str, dialect: Dialect) -> None:
    graph = HEADS[kind].eval()
    export_head(graph, tmp_path / "h.onnx", dialect)
    for length in (1, 2, 7, 299, 300):
        answer = run_onnx(tmp_path / "h.onnx", WINDOW[:, :length])
        for given, expected in zip(answer, run_torch(graph, WINDOW[:, :length]), strict=True):
            assert given.shape == expected.shape
            np.testing.assert_allclose(given, expected, atol=2e-5)


def test_graphs_hold_nothing_that_is_not_needed(tmp_path: Path) -> None:
    export_encoder(tiny_vit(), tmp_path / "e.onnx")
    export_head(HEADS["one-trunk"], tmp_path / "h.onnx")
    for name, norms in (("e.onnx", 2 + 2 * 2), ("h.onnx", 2)):
        model = onnx.load(tmp_path / name)
        operators = Counter(node.op_type for node in model.graph.node)
        assert [(one.domain, one.version) for one in model.opset_import if one.domain == ""] == [("", ONNX_OPSET)]
        assert {node.domain for node in model.graph.node} == {""}
        assert operators["LayerNormalization"] == norms
        # No dropout, no normalisation of weights or batches, no arithmetic on shapes.
        assert not {"Dropout", "ReduceL2", "BatchNormalization", "Shape", "Expand", "ReduceMean", "Sqrt"} & set(
            operators
        )
        read = {name for node in model.graph.node for name in node.input}
        assert {weight.name for weight in model.graph.initializer} <= read
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
        assert b"/train/" not in model.SerializeToString()


def test_last_block_of_the_encoder_computes_the_class_token_only(tmp_path: Path) -> None:
    export_encoder(tiny_vit(), tmp_path / "e.onnx")
    inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "e.onnx"))
    tokens = [
        one.type.tensor_type.shape.dim[1].dim_value
        for one in inferred.graph.value_info
        if len(one.type.tensor_type.shape.dim) == 3 and one.type.tensor_type.shape.dim[2].dim_value == 4 * 128
    ]
    assert sorted(set(tokens)) == [1, 50]  # the hidden layers of the MLPs


def write_two(folder: Path) -> dict[str, str]:
    """Export into a folder; return the hashes of the files."""
    export_encoder(tiny_vit(layers=1), folder / "encoder.onnx", Dialect.CPU)
    export_head(tiny_heads()["one-trunk"], folder / "head.onnx")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_checkpoint_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    program = f"import sys; sys.path[:0] = {folders}; import test_graphs as t; t.write_two(t.Path('.'))"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path / "there",
        env={"PYTHONHASHSEED": "7", "PATH": "", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    here = write_two(tmp_path / "here")
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "there").iterdir()}
    assert len(here) == 2
    assert here == there


def test_other_feature_width_is_refused(tmp_path: Path) -> None:
    encoder = tiny_vit()
    wide = ClipEncoder(type(encoder.config)(architecture="wide", embed_dim=768, vision_cfg=encoder.config.vision_cfg))
    with pytest.raises(ExportError, match="width 768; the served contract has 512"):
        export_encoder(wide, tmp_path / "e.onnx")


def test_model_too_large_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_FILE_BYTES", 10_000)
    with pytest.raises(ExportError, match="one ONNX file holds"):
        export_head(HEADS["without-tcn"], tmp_path / "h.onnx")
    assert not (tmp_path / "h.onnx").exists()


def test_a_head_still_works_after_a_graph_was_made_of_it() -> None:
    head = tiny_head()
    features = torch.randn(1, 9, 512)
    with torch.inference_mode():
        before = head.answers(features)
        graph = HeadGraph([head])
        expression = graph(features)[graph.tasks.index("expression")]
        torch.testing.assert_close(head.answers(features), before, rtol=0, atol=0)
    torch.testing.assert_close(expression, before["expression"])


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    encoder = tiny_vit()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    export_encoder(encoder, tmp_path / "e.onnx", Dialect.CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


STREAMS = {
    "late": HeadGraph([tiny_head(context_frames=7, layers=2, lookahead_frames=3, norm="pre")]),
    "ensemble": HeadGraph([HeadEnsemble([tiny_head(context_frames=7), tiny_head(context_frames=1, use_tcn=False)])]),
}


@pytest.mark.parametrize("kind", list(STREAMS))
def test_a_stream_graph_is_the_trained_head_and_its_own_to_the_bit_in_any_steps(tmp_path: Path, kind: str) -> None:
    graph = STREAMS[kind]
    late = graph.configs[0].lookahead_frames
    export_stream(graph, tmp_path / "s.onnx")
    session = open_graph(tmp_path / "s.onnx", 1)
    at_once, alone = (streamed(session, WINDOW, frames, late) for frames in (0, 60))
    expected = dict(zip(graph.tasks, run_torch(graph, WINDOW), strict=True))
    for task, values in at_once.items():
        np.testing.assert_allclose(values, expected[task][0], atol=1e-5)
        np.testing.assert_array_equal(alone[task], values)


def test_a_head_that_remembers_without_a_limit_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="this head is recurrent"):
        export_stream(HeadGraph([tiny_head(recurrent=True, use_tcn=False)]), tmp_path / "s.onnx")
