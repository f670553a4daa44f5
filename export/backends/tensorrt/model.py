"""A Triton backend called `tensorrt`, written for Triton's python backend: runs the plan of any model that says
`platform: "tensorrt_plan"`, with the configuration that Triton's native TensorRT backend takes. The plan is one of
TensorRT for RTX when its name says so, else of TensorRT.

Requests are read, checked and answered by affserve_backend.py; the GPU is used by affserve_plan.py. Here is what lies
between: which lengths a plan is made ready for, and as which of them a batch runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affserve_backend import Backend, GraphTensors, LoadError, Tensors, parameter
from affserve_plan import PLAN_ERRORS, Plan, open_plan

# A batch is padded to the next of these, so that few shapes have kernels and a CUDA graph of their own: rows of a batch
# do not see each other, and padding 3 frames to 4 costs less than starting hundreds of kernels one by one. Longer ones
# run in slices: beyond 64 frames a GPU is full, and scratch memory grows with the longest.
LADDER = (1, 2, 4, 8, 16, 32, 64)
RTX_PLAN = ".rtx.plan"  # how the name of a plan of TensorRT for RTX ends


class TritonPythonModel(Backend):
    """One instance of one model on one GPU."""

    slice_frames = LADDER[-1]
    engine_errors = PLAN_ERRORS

    def open(self, config: Mapping[str, Any], path: Path, threads: int, args: Mapping[str, str]) -> str:
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self._lengths = LADDER if self.batches else (int(parameter(config, "window_frames", "1")),)
        # In a window all frames see each other, so it is never padded: any length but the whole one runs as it is.
        other = not self.batches
        files = {key: path.with_name(name) for key, name in config.get("cc_model_filenames", {}).items()}
        try:
            self._plan: Plan = open_plan(
                self.name, path, files, device, self._lengths, other, path.name.endswith(RTX_PLAN)
            )
        except PLAN_ERRORS as error:
            raise LoadError(f"{self.name}: {error}") from error
        return self._plan.words

    def graph(self) -> tuple[GraphTensors, GraphTensors]:
        return self._plan.inputs, self._plan.outputs

    def run(self, inputs: Tensors) -> Tensors:
        (values,) = (inputs[name] for name in self.inputs)
        return self._plan.run(values, rung(self._lengths, len(values)) if self.batches else values.shape[1])

    def close(self) -> None:
        self._plan.close()


def rung(ladder: Sequence[int], frames: int) -> int:
    """Return the smallest length of a ladder that holds so many frames, at most its last."""
    return next(length for length in ladder if length >= frames)
