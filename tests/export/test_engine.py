"""The TensorRT builder on a machine without TensorRT: its names in the real bindings, its logic run for real, its
graphs in TensorRT's own support table. What only a GPU can show the builder itself checks, each time it builds.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_stubs
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from plan_files import ADA, AMPERE, RECORD
from tensorrt_operators import tensor_types, unsupported

from affserve.export.contract import CLIP_ENCODER, TEMPORAL_HEAD
from affserve.export.engine import building
from affserve.export.engine.building import write_plan
from affserve.export.engine.parity import compare_with_graph
from affserve.export.engine.plans import read_record, record_file
from affserve.export.engine.profile import ENCODER_PROFILE, HEAD_PROFILE, EngineOptions, Profile, Runner
from affserve.export.engine_sets import GPU_ONNX_FILE
from affserve.export.graphs.head import HeadGraph
from affserve.export.graphs.onnx_file import export_encoder, export_head
from affserve.export.machine.gpus import installed_tensorrt
from affserve.export.pins import TENSORRT_REQUIREMENT, TENSORRT_VERSION, TRITON_CONTAINER_TAG
from affserve.export.precision.half import ISLANDS, WIDER_ISLANDS, to_half
from affserve.export.server.installation import BACKENDS
from affserve.train.errors import ExportError
from affserve.train.models.encoder import DEMO_ARCHITECTURE, create_encoder
from affserve.train.models.temporal_head import TemporalHead, demo_head_config

ENGINE = Path(building.__file__).parent
PLAN_MODULE = BACKENDS / "affserve_plan.py"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := tensorrt_stubs.why_not():
        pytest.skip(reason)
    return tensorrt_stubs.compile_stubs(tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two graphs of small untrained models."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    export_encoder(create_encoder(DEMO_ARCHITECTURE), folder / "encoder.onnx")
    export_head(HeadGraph([TemporalHead(demo_head_config())]), folder / "head.onnx")
    return {CLIP_ENCODER.name: folder / "encoder.onnx", TEMPORAL_HEAD.name: folder / "head.onnx"}


# --- names, arguments and enum members, as the bindings of the pinned TensorRT declare them ---


@pytest.fixture(scope="module")
def types(stubs: Path) -> Path:
    return tensorrt_stubs.write_types(stubs)


def checked(folder: Path, *paths: Path) -> list[Path]:
    """Copies of the files in which `trt` is the module itself, not an argument that may be any module."""
    for path in paths:
        (folder / path.name).write_text(path.read_text().replace("trt: ModuleType", "_trt: ModuleType"))
    return [folder / path.name for path in paths]


def without(path: Path, *functions: str) -> None:
    """Drop functions, of TensorRT for RTX alone, from a file."""
    lines = path.read_text().splitlines()
    for node in reversed(ast.parse("\n".join(lines)).body):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            lines[node.lineno - 1 : node.end_lineno] = [f"def {node.name}(*_: Any) -> None: ..."]
    path.write_text("\n".join(lines))


def test_every_use_of_tensorrt_is_in_its_bindings(types: Path, tmp_path: Path) -> None:
    used = [path for path in ENGINE.glob("*.py") if "import tensorrt as trt" in path.read_text()]
    assert {"builder.py", "loaded.py", "tuning.py"} <= {path.name for path in used}
    copies = checked(tmp_path, PLAN_MODULE, *(path for path in used if path.name != "rtx.py"))
    without(copies[0], "_ready_rtx", "_check_validity")
    assert tensorrt_stubs.type_errors(types, *copies) == []


def test_every_use_of_tensorrt_for_rtx_is_in_its_bindings(stubs: Path, tmp_path: Path) -> None:
    types = tensorrt_stubs.write_types(stubs, "tensorrt_rtx_bindings.tensorrt_rtx", tmp_path)
    copies = checked(tmp_path, PLAN_MODULE, ENGINE / "builder.py", ENGINE / "rtx.py")
    assert tensorrt_stubs.type_errors(types, *copies) == []


def test_every_use_of_cuda_is_in_its_bindings() -> None:
    cudart: Any = pytest.importorskip("cuda.bindings.runtime", reason="needs the extra affserve[rtx]")
    tree = ast.parse(PLAN_MODULE.read_text())
    used = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {name for name in used if name.startswith("cudart.")}
    assert len(names) > 15
    assert [name for name in names if not hasattr(cudart, name.split(".")[1])] == []
    for name in (name for name in names if name.count(".") == 2):  # members of enums
        assert hasattr(getattr(cudart, name.split(".")[1]), name.split(".")[2]), name
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if (name := ast.unparse(call.func)) in names:
            signature = getattr(cudart, name.split(".")[1]).__doc__.splitlines()[0]
            arguments = signature.partition("(")[2].rpartition(")")[0]
            assert len(call.args) == (arguments.count(",") + 1 if arguments else 0), signature


MISTAKES = """\
import tensorrt as trt
def build(builder: trt.Builder, network: trt.INetworkDefinition, cache: trt.ITimingCache, engine: trt.ICudaEngine):
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    config.int8_calibrator = None
    config.num_optimization_profiles = 1
    builder.build_engine(network, config)
    config.set_timing_cache(cache, ignore=False)
    builder.create_network(0, 1)
    trt.OnnxParser(network)
    engine.create_execution_context().execute_async_v2(0)
class Logger(trt.ILogger):
    def log(self, severity: trt.ILogger.Severity) -> None: ...
"""


def test_what_tensorrt_does_not_have_is_found(types: Path, tmp_path: Path) -> None:
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    found = tensorrt_stubs.type_errors(types, tmp_path / "mistakes.py")
    assert [int(line.split(":")[1]) for line in found] == [4, 5, 6, 7, 8, 9, 10, 11, 13], found


# --- the builder's own logic, over bindings that can do nothing ---

MONITOR = """
import json, threading
import tensorrt as trt
from affserve.export.engine.builder import Messages, logger_into, monitor_into, start_builder
told, messages, cancelled = [], Messages(), threading.Event()
monitor = monitor_into(trt, told.append, cancelled)
monitor.phase_start("Building", None, 2)
monitor.phase_start("Tactics", "Building", 4)
going = [monitor.step_complete("Tactics", step) for step in range(4)]
monitor.phase_finish("Tactics")
monitor.phase_start("Layer", "Tactics", 100)
cancelled.set()
stopped = monitor.step_complete("Building", 1)
monitor.phase_finish("Building")
logger = logger_into(trt, messages)
logger.log(trt.ILogger.ERROR, "no such tactic")
logger.log(trt.ILogger.VERBOSE, "chatter")
try:
    start_builder(trt, logger, messages)
except Exception as error:
    refused = [type(error).__name__, str(error)]
print(json.dumps({"told": told, "going": going, "stopped": stopped, "refused": refused}))
"""


def test_outer_phases_are_told_and_a_build_can_be_stopped(stubs: Path) -> None:
    said = json.loads(tensorrt_stubs.run_over_stubs(stubs, MONITOR))
    assert said["told"] == ["Building", "Tactics"]
    assert all(said["going"])
    assert said["stopped"] is False
    kind, message = said["refused"]
    assert kind == "ExportError"
    assert "did not start" in message
    assert "ERROR: no such tactic" in message
    assert "chatter" not in message


INTERRUPT = """
import json, os, signal, threading, traceback
from affserve.export.engine.builder import interruptible
events = []
def who_waits():  # the functions that the main thread is in
    return {frame.name for frame in traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])}
def build(cancelled):
    events.append("building")
    while not {"result", "wait"} <= who_waits():
        pass
    os.kill(os.getpid(), signal.SIGINT)
    assert cancelled.wait(120)  # as TensorRT does: it looks between steps
    events.append("ended")
try:
    interruptible(build)
except KeyboardInterrupt:
    events.append("interrupted")
def fails(_):
    raise TimeoutError("of its own")
try:
    interruptible(fails)
except TimeoutError as error:
    events.append(str(error))
print(json.dumps(events + [interruptible(lambda _: 7)]))
"""


def test_ctrl_c_ends_the_build_before_it_is_reported(stubs: Path) -> None:
    events = json.loads(tensorrt_stubs.run_over_stubs(stubs, INTERRUPT))
    assert events == ["building", "ended", "interrupted", "of its own", 7]


CHECKS = """
import json
from pathlib import Path
from affserve.export.contract import CLIP_ENCODER, TEMPORAL_HEAD
from affserve.export.engine.loaded import check_weights, expected_tensors, onnx_weights, summarise
from affserve.export.server.installation import BACKENDS
from affserve.train.errors import ExportError
def refusal(call, *arguments):
    try:
        call(*arguments)
    except ExportError as error:
        return str(error)
onnx = Path(sys.argv[1])
weights = onnx_weights(onnx)
total = sum(weights.values())
report = {"Layers": [{"Name": "a", "Outputs": [{"DataType": "Half", "Format": "Row major linear FP16 format"}]},
                     {"Name": "b", "Outputs": [{"DataType": "Float"}, {"DataType": "UInt8"}, {}]}, "unnamed"]}
print(json.dumps({
    "weights": weights,
    "bytes": onnx.stat().st_size,
    "same": refusal(check_weights, total, weights, onnx),
    "doubled": refusal(check_weights, 2 * total, weights, onnx),
    "encoder": {k: [str(v) for v in t] for k, t in expected_tensors(CLIP_ENCODER, ["features"]).items()},
    "head": {k: [str(v) for v in t] for k, t in expected_tensors(TEMPORAL_HEAD, ["action_units"]).items()},
    "foreign": refusal(expected_tensors, TEMPORAL_HEAD, ["logits"]),
    "summary": summarise(report),
}))
"""


def test_a_plan_is_measured_against_its_contract_and_its_graph(stubs: Path, graphs: dict[str, Path]) -> None:
    said = json.loads(tensorrt_stubs.run_over_stubs(stubs, CHECKS, str(graphs[CLIP_ENCODER.name])))
    assert said["encoder"] == {
        "frames": ["TensorIOMode.INPUT", "DataType.UINT8", "(-1, 224, 224, 3)"],
        "features": ["TensorIOMode.OUTPUT", "DataType.FLOAT", "(-1, 512)"],
    }
    assert said["head"] == {
        "features": ["TensorIOMode.INPUT", "DataType.FLOAT", "(1, -1, 512)"],
        "action_units": ["TensorIOMode.OUTPUT", "DataType.FLOAT", "(1, -1, 12)"],
    }
    assert "puts out logits; expected some of valence_arousal" in said["foreign"]
    # Weights are nearly all of the file: a plan of twice their size was built in a wider type.
    assert 0.95 * said["bytes"] < sum(said["weights"].values()) < said["bytes"]
    assert said["same"] is None
    assert "did not keep the graph's types" in said["doubled"]
    assert said["summary"] == {"layers": 3, "types": {"FP16": 1, "FP32": 1, "UINT8": 1, "other": 1}}


BUILD = """
import json
from pathlib import Path
from affserve.export.engine.building import build_plan
from affserve.export.engine.profile import ENCODER_PROFILE, EngineOptions
from affserve.export.machine.gpus import Gpu
from affserve.export.server.installation import BACKENDS
from affserve.train.errors import ExportError
gpu = Gpu(index=0, name="RTX", compute_capability="8.6", memory_bytes=0, driver="580.1", uuid="GPU-0")
def refusal(version, any_version):
    sys.modules["tensorrt"].__version__ = version
    options = EngineOptions(any_version=any_version)
    try:
        build_plan(Path(sys.argv[1]), ENCODER_PROFILE, gpu, options)
    except ExportError as error:
        return str(error)
pinned = sys.modules["tensorrt"].__version__
print(json.dumps([refusal("11.1.0.106", False), refusal("11.1.0.106", True), refusal(pinned, False)]))
"""


def test_only_the_containers_tensorrt_builds_unless_told(stubs: Path, graphs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(graphs[CLIP_ENCODER.name], tmp_path / GPU_ONNX_FILE)
    other, other_allowed, pinned = json.loads(tensorrt_stubs.run_over_stubs(stubs, BUILD, str(tmp_path)))
    assert f"TensorRT 11.1.0.106 is installed, and the serving container {TRITON_CONTAINER_TAG} has" in other
    assert f"pip install {TENSORRT_REQUIREMENT}" in other
    # Let through, the build gets as far as it can without a GPU.
    assert "does not see RTX (compute capability 8.6" in other_allowed
    assert "does not see RTX (compute capability 8.6" in pinned
    assert [path.name for path in tmp_path.iterdir()] == [GPU_ONNX_FILE]


@pytest.mark.skipif(installed_tensorrt() is not None, reason="TensorRT is installed here")
def test_without_tensorrt_the_message_says_how_to_get_it_or_do_without() -> None:
    with pytest.raises(ExportError, match=f"pip install {TENSORRT_REQUIREMENT}.*--print-trtexec"):
        building.require_tensorrt(EngineOptions())


def test_the_pinned_version_is_that_of_the_bindings_the_builder_is_checked_on() -> None:
    from importlib.metadata import version

    assert version("tensorrt-cu13-bindings") == TENSORRT_VERSION


# --- what is asked for ---


def test_gpus_of_different_kinds_do_not_share_a_timing_cache(tmp_path: Path) -> None:
    options = EngineOptions(timing_cache=tmp_path / "timing.cache")
    assert options.timing_cache_file(AMPERE) == tmp_path / "timing.cache.sm86"
    assert options.timing_cache_file(ADA) == tmp_path / "timing.cache.sm89"


def test_a_plan_never_stands_without_its_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "1" / "model.sm86.plan"
    write_plan(plan, b"one", RECORD)
    assert plan.read_bytes() == b"one"
    assert read_record(record_file(plan)) == RECORD

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(building, "write_record", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_plan(plan, b"two", replace(RECORD, gpu="another"))
    assert not plan.exists(), "a plan beside another one's sidecar"


# --- a plan against its graph ---


def runner_of(path: Path) -> Runner:
    """What a perfect plan computes: the graph itself, in another session."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())

    def run(values: NDArray[Any]) -> list[NDArray[np.float32]]:
        return list(session.run(None, {name: values}))

    return run


def rows_beyond_64(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [np.where(np.arange(len(values))[:, None] < 64, values, 0) for values in answer]


def overflowed(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    answer[0][-1, 0] = np.nan
    return answer


def swapped_outputs(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return answer[::-1]


def last_frame_wrong(answer: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    answer[1][:, -1] = np.roll(answer[1][:, -1], 1, axis=-1)
    return answer


@pytest.mark.parametrize("profile", [ENCODER_PROFILE, HEAD_PROFILE], ids=["encoder", "head"])
def test_a_faithful_plan_passes(graphs: dict[str, Path], profile: Profile) -> None:
    path = graphs[profile.model.name]
    checks = compare_with_graph(runner_of(path), path, profile)
    assert [check for check in checks if not check.passed] == []
    assert {check.what.split(",")[1].split(":")[0].strip() for check in checks} == (
        {"batch of 1", "batch of 8", "batch of 64", "batch of 300"}
        if profile is ENCODER_PROFILE
        else {"T = 1", "T = 2", "T = 299", "T = 300"}
    )


@pytest.mark.parametrize(
    ("profile", "fault"),
    [
        (ENCODER_PROFILE, rows_beyond_64),
        (ENCODER_PROFILE, overflowed),
        (HEAD_PROFILE, swapped_outputs),
        (HEAD_PROFILE, last_frame_wrong),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value.model.name,
)
def test_a_plan_that_computes_something_else_fails(
    graphs: dict[str, Path], profile: Profile, fault: Callable[[list[NDArray[np.float32]]], list[NDArray[np.float32]]]
) -> None:
    path = graphs[profile.model.name]
    faithful = runner_of(path)
    checks = compare_with_graph(lambda values: fault(faithful(values)), path, profile)
    assert any(not check.passed for check in checks)


# --- TensorRT's table of operators ---


@pytest.fixture(scope="module")
def half_graphs(graphs: dict[str, Path]) -> dict[str, Path]:
    """What plans are built from: the same graphs in half precision, with few and with many float32 islands."""
    made = {}
    for model, source in graphs.items():
        for name, islands in (("fp16", ISLANDS), ("fp16, more islands", WIDER_ISLANDS)):
            made[f"{model} {name}"] = source.with_name(f"{source.stem}.{len(islands)}.onnx")
            to_half(source, made[f"{model} {name}"], islands)
    return made


def test_graphs_are_in_the_support_table(graphs: dict[str, Path], half_graphs: dict[str, Path]) -> None:
    problems = {name: unsupported(onnx.load(str(path))) for name, path in (graphs | half_graphs).items()}
    assert len(problems) == 6
    assert [entry for entries in problems.values() for entry in entries] == []


def test_a_vit_in_half_precision_is_in_the_support_table(tmp_path: Path) -> None:
    """The architecture that is trained by default, with the first and the last of its twelve blocks of one kind."""
    encoder = create_encoder("ViT-B-32")
    blocks: Any = encoder.visual.transformer
    blocks.resblocks = torch.nn.ModuleList([blocks.resblocks[0], blocks.resblocks[-1]])
    export_encoder(encoder, tmp_path / "vit.onnx")
    to_half(tmp_path / "vit.onnx", tmp_path / "half.onnx")
    model = onnx.load(str(tmp_path / "half.onnx"))
    assert [node.op_type for node in model.graph.node].count("Softmax") == 2
    assert unsupported(model) == []


def test_what_plans_are_built_from_computes_in_half_precision(half_graphs: dict[str, Path]) -> None:
    for path in half_graphs.values():
        model = onnx.load(str(path))
        types = tensor_types(model)
        computed = {(node.op_type, types[node.output[0]]) for node in model.graph.node}
        assert {kind for op, kind in computed if op in ("MatMul", "Conv", "Gemm")} == {"FP16"}
        assert {kind for op, kind in computed if op == "LayerNormalization"} == {"FP32"}
        # A plan speaks the graph's types: from outside only the contract's may be seen.
        assert {types[one.name] for one in model.graph.input} <= {"UINT8", "FP32"}
        assert {types[one.name] for one in model.graph.output} == {"FP32"}


def test_what_the_table_lacks_is_found() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], name="turn"),
        helper.make_node("Cast", ["turned"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Sqrt", ["wide"], ["root"], name="root"),
        helper.make_node("Cast", ["root"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Det", ["float"], ["determinant"], name="det"),
        helper.make_node("Shape", ["determinant"], ["axes"]),
        helper.make_node("ReduceMean", ["determinant", "axes"], ["y"], name="mean"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [3, 3, 2, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "small", [x], [y])
    found = unsupported(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    for complaint in (
        "turn (Transpose): x is UINT8",
        "root (Sqrt): wide is DOUBLE",
        "det (Det): not in the table",
        "mean (ReduceMean): input 1 must be a constant",
    ):
        assert any(problem.startswith(complaint) for problem in found), found
