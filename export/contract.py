"""The contract between export, server and client: every model name, tensor, shape, type and parameter, written once.

Shapes use -1 for an axis of any length. B is a batch that the server may form from several requests, T a time axis that
belongs to one request. All tensors are C-contiguous; frames are RGB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from affserve.train.errors import DataError, RepositoryError
from affserve.train.labels import TASKS
from affserve.train.processing.record import Processing, Record, as_document, parse_processing
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES

IMAGE_SIZE_PX = 224
FEATURE_WIDTH = 512
CHUNK_FRAMES = 32  # frames a client sends in one message: 4.8 MB, where gRPC is fastest

MANIFEST_FILE = "manifest.json"
ONNX_OPSET = 20  # LayerNormalization is one node from 17 on; both ONNX Runtime and TensorRT 11 read 20


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, type and shape of one model input or output, as the caller sees it (without the server's batch axis)."""

    name: str
    datatype: str  # as in the KServe protocol
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The NumPy type that travels as `datatype`."""
        return np.dtype({"UINT8": np.uint8, "FP32": np.float32, "BYTES": np.object_}[self.datatype])

    def matches(self, shape: tuple[int, ...]) -> bool:
        """Say whether an array of this shape fits."""
        return len(shape) == len(self.shape) and all(w in (-1, s) for w, s in zip(self.shape, shape, strict=True))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model of the repository; `max_batch_size` 0 means that a request is never batched with another.

    remembers: whether each request is a step of a stream, with a number and flags at its start and end.
    """

    name: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    remembers: bool = False


FRAMES = TensorSpec(name="frames", datatype="UINT8", shape=(IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3))
FEATURES = TensorSpec(name="features", datatype="FP32", shape=(FEATURE_WIDTH,))
JPEG = TensorSpec(name="jpeg", datatype="BYTES", shape=(1,))  # one file of a crop of IMAGE_SIZE_PX by IMAGE_SIZE_PX


STATE = TensorSpec(name="state", datatype="FP32", shape=(-1,))  # of a stream, kept by the server
NEXT_STATE = TensorSpec(name="next_state", datatype="FP32", shape=(-1,))


LABELS_PREFIX, STREAM_PREFIX, PROCESSING_PREFIX = "labels.", "stream.", "processing."  # of parameters


def _per_frame(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, datatype=spec.datatype, shape=(-1, *spec.shape))


TASK_OUTPUTS: dict[str, TensorSpec] = {
    task.key: TensorSpec(name=task.key, datatype="FP32", shape=(-1, task.outputs)) for task in TASKS.values()
}
"""valence_arousal (T, 2) in [-1, 1]; expression (T, 8), a distribution; action_units (T, 12), probabilities."""

CLIP_ENCODER = ModelSpec(name="clip_encoder", max_batch_size=WINDOW_FRAMES, inputs=(FRAMES,), outputs=(FEATURES,))
TEMPORAL_HEAD = ModelSpec(
    name="temporal_head", max_batch_size=0, inputs=(_per_frame(FEATURES),), outputs=tuple(TASK_OUTPUTS.values())
)
TEMPORAL_STREAM = ModelSpec(
    name="temporal_stream", max_batch_size=0, inputs=TEMPORAL_HEAD.inputs, outputs=TEMPORAL_HEAD.outputs, remembers=True
)
AFFECT = ModelSpec(name="affect", max_batch_size=0, inputs=(_per_frame(FRAMES),), outputs=TEMPORAL_HEAD.outputs)
JPEG_DECODER = ModelSpec(name="jpeg_decoder", max_batch_size=WINDOW_FRAMES, inputs=(JPEG,), outputs=(FRAMES,))
CLIP_ENCODER_JPEG = ModelSpec(
    name="clip_encoder_jpeg", max_batch_size=WINDOW_FRAMES, inputs=(JPEG,), outputs=(FEATURES,)
)
AFFECT_JPEG = ModelSpec(name="affect_jpeg", max_batch_size=0, inputs=(_per_frame(JPEG),), outputs=TEMPORAL_HEAD.outputs)
MODELS: dict[str, ModelSpec] = {
    model.name: model
    for model in (CLIP_ENCODER, TEMPORAL_HEAD, TEMPORAL_STREAM, AFFECT, JPEG_DECODER, CLIP_ENCODER_JPEG, AFFECT_JPEG)
}
# A repository may be without them; frames then travel raw.
JPEG_MODELS = (JPEG_DECODER.name, CLIP_ENCODER_JPEG.name, AFFECT_JPEG.name)
OPTIONAL_MODELS = (TEMPORAL_STREAM.name, *JPEG_MODELS)  # temporal_stream is there where the heads stream
MODELS_WITH_LABELS = (TEMPORAL_HEAD.name, TEMPORAL_STREAM.name, AFFECT.name, AFFECT_JPEG.name)
MODELS_WITHOUT_FILES = (AFFECT.name, *JPEG_MODELS)


MOST_WINDOW_FRAMES = 100_000  # a client holds a window in memory
FOREIGN = "it was not written by affserve export; export it again"
_LABEL = re.compile(r"\w[\w .+-]{,99}")  # it becomes the name of a column


@dataclass(frozen=True, kw_only=True)
class StreamDescription:
    """What a client must know of a head that streams."""

    reach_frames: int  # how many frames before one have a part in what comes out at its position
    lookahead_frames: int = 0  # L: the answer for a frame comes out L positions later
    state_values: int  # float32 values that the server keeps of a stream

    def to_parameters(self) -> dict[str, str]:
        """Return the description as string parameters of a Triton model config."""
        return {f"{STREAM_PREFIX}{name}": str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> StreamDescription | None:
        """Read the description back; None for a head that does not stream."""
        values = {name: int(value) for name, value in _below(STREAM_PREFIX, parameters).items()}
        return cls(**values) if values else None


@dataclass(frozen=True, kw_only=True)
class HeadDescription:
    """What a served head can do, as it travels in the `parameters` of the configs of MODELS_WITH_LABELS.

    A head may be trained for any subset of the tasks: the model has those outputs and one `labels.<task>` parameter for
    each. A client asks the server for the config and needs no copy of the labels.
    """

    labels: Mapping[str, tuple[str, ...]]  # task key -> label names in output order
    window_frames: int = WINDOW_FRAMES
    stride_frames: int = STRIDE_FRAMES
    trained_on: str = "unknown"  # corpus name, as train.affwild2 has it
    encoder: str = "unknown"  # fingerprint of the encoder whose features the head was trained on
    stream: StreamDescription | None = None  # None: the head answers whole segments only
    processing: Processing = field(default_factory=dict)  # what clients make of the answers

    def to_parameters(self) -> dict[str, str]:
        """Return the description as string parameters of a Triton model config."""
        labels = {f"{LABELS_PREFIX}{task}": ",".join(names) for task, names in self.labels.items()}
        return {
            **labels,
            "window_frames": str(self.window_frames),
            "stride_frames": str(self.stride_frames),
            "trained_on": self.trained_on,
            "encoder": self.encoder,
            **(self.stream.to_parameters() if self.stream is not None else {}),
            **{f"{PROCESSING_PREFIX}{task}": json.dumps(one) for task, one in as_document(self.processing).items()},
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str], source: str) -> HeadDescription:
        """Read the description back; `source` names the model for the RepositoryError when something is missing."""
        labels = {task: tuple(names.split(",")) for task, names in _below(LABELS_PREFIX, parameters).items()}
        if not labels:
            raise RepositoryError(
                f"{source} tells no labels (found parameters: {', '.join(sorted(parameters)) or 'none'}; expected "
                f"labels.<task>): {FOREIGN}"
            )
        try:
            window, stride = int(parameters["window_frames"]), int(parameters["stride_frames"])
            stream = StreamDescription.from_parameters(parameters)
        except (KeyError, ValueError, TypeError) as error:
            raise RepositoryError(
                f"{source}: its window or stream is not told in whole numbers ({error}): {FOREIGN}"
            ) from error
        if not 0 < stride <= window <= MOST_WINDOW_FRAMES:
            raise RepositoryError(
                f"{source} tells windows of {window} frames every {stride}, expected 1 to {MOST_WINDOW_FRAMES}, none "
                f"further apart than it is long: {FOREIGN}"
            )
        if odd := [name for names in labels.values() for name in names if not _LABEL.fullmatch(name)]:
            raise RepositoryError(f"{source} tells the label {odd[0]!r}, expected a word or two: {FOREIGN}")
        return cls(
            labels=labels,
            window_frames=window,
            stride_frames=stride,
            trained_on=parameters.get("trained_on", "unknown"),
            encoder=parameters.get("encoder", "unknown"),
            stream=stream,
            processing=_processing_of(parameters, labels, source),
        )


def _below(prefix: str, parameters: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in parameters.items() if key.startswith(prefix)}


def _processing_of(
    parameters: Mapping[str, str], labels: Mapping[str, tuple[str, ...]], source: str
) -> dict[str, Record]:
    try:
        document = {task: json.loads(value) for task, value in _below(PROCESSING_PREFIX, parameters).items()}
        return parse_processing(document, labels, source)
    except (ValueError, DataError) as error:
        raise RepositoryError(
            f"{source} declares post-processing that this client cannot do ({error}): use a newer one, "
            "or export it again"
        ) from error


def default_head_description() -> HeadDescription:
    """Return the description of a head for all tasks."""
    return HeadDescription(labels={task.key: task.names for task in TASKS.values()})


CPU, GPU = "cpu", "gpu"  # what an artefact is for: ONNX Runtime on a CPU; TensorRT plans and ONNX Runtime's CUDA
