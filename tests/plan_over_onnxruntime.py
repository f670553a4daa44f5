"""What affserve_plan.py is to the backend `tensorrt`, without a GPU: the "plan" is an ONNX file, run by ONNX Runtime.

Tests put this file in its place in the backend directory of a real Triton. It keeps what matters of the device: a
buffer that is not cleared between runs, the lengths that were made ready, and a single context for all others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from affserve_backend import GraphTensors, Tensors
from numpy.typing import NDArray

PLAN_ERRORS = (RuntimeError,)
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
RUNS_VARIABLE = "AFFSERVE_TEST_RUNS"  # a file: model, rows given, length run, was it made ready


def open_plan(
    model: str,
    path: Path,
    by_capability: Mapping[str, Path],
    device: int | None,
    lengths: Sequence[int],
    other: bool,
    for_rtx: bool,
) -> Plan:
    path = by_capability.get("8.6", path)
    return Plan(model, path, lengths, other, f"{'RTX' if for_rtx else 'TensorRT'} {path.name}")


class Plan:
    def __init__(self, model: str, path: Path, lengths: Sequence[int], other: bool, words: str) -> None:
        self.words, self._model, self._lengths, self._other = words, model, lengths, other
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (given,), self._names = self._session.get_inputs(), [one.name for one in self._session.get_outputs()]
        self.inputs: GraphTensors = {given.name: (TYPES[given.type], tuple(given.shape))}
        self.outputs: GraphTensors = {
            one.name: (TYPES[one.type], tuple(one.shape)) for one in self._session.get_outputs()
        }
        self._input, self._axis = given.name, [isinstance(length, str) for length in given.shape].index(True)
        longest = [max(lengths) if axis == self._axis else length for axis, length in enumerate(given.shape)]
        self._buffer = np.ones(longest, TYPES[given.type])

    def run(self, values: NDArray[Any], length: int) -> Tensors:
        rows, ready = values.shape[self._axis], length in self._lengths
        assert rows <= length
        assert ready or self._other
        with open(os.environ[RUNS_VARIABLE], "a") as runs:
            runs.write(f"{self._model} {rows} {length} {ready}\n")
        self._part(rows)[...] = values
        outputs = self._session.run(self._names, {self._input: self._part(length)})
        return {name: answer.take(range(rows), self._axis) for name, answer in zip(self._names, outputs, strict=True)}

    def close(self) -> None:
        del self._session

    def _part(self, length: int) -> NDArray[Any]:
        part: NDArray[Any] = self._buffer[(slice(None),) * self._axis + (slice(length),)]
        return part
