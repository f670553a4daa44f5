"""What the machine could do at best: matrix products of each type, measured here.

A figure of a benchmark means something beside these: frames a second cannot exceed the peak divided by the arithmetic
of a frame.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx  # noqa: TID253 - this file makes graphs of one product
import onnxruntime as ort  # noqa: TID253 - this file measures with it

from affserve.benchmarks.engines.specs import FP16, FP32, INT8, TF32
from affserve.export.contract import CPU

# Rows, inner, columns: a square one, and layers of ViT-B-32 over 32 frames and over 8 (50 tokens each).
CPU_SHAPES = ((1024, 1024, 1024), (1600, 768, 768), (1600, 768, 3072), (1600, 3072, 768), (400, 768, 3072))
GPU_ROWS = 8192
ROUNDS = 10
OPSET = 20


def measure_peaks(device: str, threads: int) -> dict[str, dict[str, Any]]:
    """Return, for each type, the most operations a second of any shape, in GFLOP/s (GOP/s for INT8).

    The fastest product counts, not the median: what disturbs a product only ever hides what the machine can do.
    """
    return _cpu_peaks(threads) if device == CPU else _gpu_peaks()


def better(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the higher peak of each type: a measurement that was disturbed shows less than the machine can do."""
    return {name: max(first[name], second[name], key=lambda peak: float(peak["gflops"])) for name in first}


def _cpu_peaks(threads: int) -> dict[str, dict[str, Any]]:
    fp32 = [(f"ONNX Runtime {shape}", _onnx_product(shape, threads, FP32), shape) for shape in CPU_SHAPES]
    if importlib.util.find_spec("torch") is not None:
        fp32 += [(f"PyTorch {shape}", _torch_product(shape, threads), shape) for shape in CPU_SHAPES]
    int8 = [(f"ONNX Runtime {shape}", _onnx_product(shape, threads, INT8), shape) for shape in CPU_SHAPES]
    return {FP32: best_rate(fp32), INT8: best_rate(int8)}


Shape = tuple[int, int, int]


def best_rate(
    runs: Sequence[tuple[str, Callable[[], object], Shape]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Time products in turns and return the rate of the fastest."""
    times_s: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS + 1):
        for (_, run, _), times in zip(runs, times_s, strict=True):
            started_s = clock()
            run()
            if number:  # the first warms up
                times.append(clock() - started_s)
    rates = [
        (2 * rows * inner * columns / min(times) / 1e9, what)
        for (what, _, (rows, inner, columns)), times in zip(runs, times_s, strict=True)
    ]
    rate, what = max(rates)
    return {"gflops": round(rate, 1), "with": what}


def _onnx_product(shape: Shape, threads: int, kind: str) -> Callable[[], object]:
    """Return one matrix product as ONNX Runtime computes it, the right side constant as a layer's weights are.

    INT8 is unsigned by signed, what quantised activations and weights are, with 32 bit sums.
    """
    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    if kind == INT8:
        left, right = rng.integers(0, 255, (rows, inner), np.uint8), rng.integers(-127, 127, (inner, columns), np.int8)
        operator, out = "MatMulInteger", onnx.TensorProto.INT32
    else:
        left = rng.standard_normal((rows, inner)).astype(np.float32)
        right = rng.standard_normal((inner, columns)).astype(np.float32)
        operator, out = "MatMul", onnx.TensorProto.FLOAT
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)],
        [helper.make_tensor_value_info("product", out, (rows, columns))],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def _torch_product(shape: Shape, threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    return lambda: torch.mm(left, right)


def _gpu_peaks() -> dict[str, dict[str, Any]]:
    import torch

    shape = (GPU_ROWS, GPU_ROWS, GPU_ROWS)
    peaks = {}
    for name, kind, tf32 in ((FP32, torch.float32, False), (TF32, torch.float32, True), (FP16, torch.float16, False)):
        left = torch.randn(GPU_ROWS, GPU_ROWS, device="cuda").to(kind)

        def product(left: torch.Tensor = left, tf32: bool = tf32) -> None:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.mm(left, left)
            torch.cuda.synchronize()

        peaks[name] = best_rate([(f"PyTorch {shape}", product, shape)])
    return peaks
