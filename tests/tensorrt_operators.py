"""TensorRT's published ONNX support table, as far as face encoders and temporal heads could need it, and who reads it.

Source: "Supported ONNX Operators" (docs/operators.md of onnx-tensorrt), edition of TensorRT 10.15, the newest that was
at hand. TensorRT 11.0's release notes add operators to the parser (Swish, TRT_Attention, TRT_MoE, TRT_KVCacheUpdate)
and take none away.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, defs

OPSETS = range(9, 24 + 1)
TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16"}  # where its names are not ONNX's

_FLOATS = frozenset({"FP32", "FP16", "BF16"})
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ALL = _NUMBERS | {"BOOL"}
_OPERATORS = {
    _FLOATS: (
        "BatchNormalization Ceil Celu Clip Conv Cos CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool "
        "GlobalMaxPool HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax MatMul "
        "PRelu Reciprocal RMSNormalization Round Sigmoid Sin Softmax Softplus Sqrt Tanh"
    ),
    _NUMBERS: (
        "Abs Add ArgMax ArgMin Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg Pad Pow Range "
        "Relu ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ScatterND Sign Sub Sum TopK"
    ),
    _ALL: (
        "Concat Expand Flatten Gather GatherElements GatherND Identity OneHot Reshape Shape Size Slice Split Squeeze "
        "Tile Transpose Trilu Unsqueeze Where"
    ),
    frozenset({"BOOL"}): "And Not Or Xor",
    # "UINT8 is only supported as network input or output": Cast is the one operator whose row has it.
    _ALL | {"UINT8"}: "Cast CastLike",
    _ALL | {"FP8", "FP4", "INT4"}: "Constant ConstantOfShape",
    _FLOATS | {"INT8", "FP8"}: "Attention",
    _NUMBERS | {"INT8"}: "Gelu",
}
SUPPORTED_TYPES = {name: types for types, names in _OPERATORS.items() for name in names.split()}
# Restrictions of the table: inputs that must be known when the plan is built, by operator and position.
CONSTANT_INPUTS = {"ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceSum": 1, "Squeeze": 1, "Unsqueeze": 1}
CONSTANT_INPUTS |= {"CumSum": 1, "OneHot": 1}


def unsupported(model: onnx.ModelProto) -> list[str]:
    """Every reason why the table does not cover a graph; empty when it does."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    problems = [f"operators of domain {domain!r}" for domain in opsets if domain not in ("", "ai.onnx")]
    if opsets.get("") not in OPSETS:
        problems.append(f"opset {opsets.get('')}")
    problems += [f"local function {function.name}" for function in model.functions]
    types = tensor_types(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    for node in model.graph.node:
        problems += [
            f"{node.name} ({node.op_type}): {reason}" for reason in _reasons(node, types, constants, opsets[""])
        ]
    return problems


def tensor_types(model: onnx.ModelProto) -> dict[str, str]:
    """The type of every tensor of a graph, as the table writes it."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    numbers = {value.name: value.type.tensor_type.elem_type for value in values}
    numbers |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: _table_name(number) for name, number in numbers.items()}


def _table_name(number: int) -> str:
    name = TensorProto.DataType.Name(number)
    return TYPES.get(name, name)


def _reasons(node: onnx.NodeProto, types: dict[str, str], constants: set[str], opset: int) -> Iterator[str]:
    row = SUPPORTED_TYPES.get(node.op_type)
    if row is None:
        yield "not in the table"
        return
    for name in _typed_tensors(node, opset):
        if types.get(name) not in row:
            yield f"{name} is {types.get(name, 'of unknown type')}, the table has {', '.join(sorted(row))}"
    position = CONSTANT_INPUTS.get(node.op_type)
    if position is not None and len(node.input) > position and node.input[position] not in constants:
        yield f"input {position} must be a constant"
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield "only the first output is supported"


def _typed_tensors(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    """The inputs and outputs whose type may vary; shapes and conditions have one type, which the table leaves out."""
    schema = defs.get_schema(node.op_type, opset)
    free = {entry.type_param_str for entry in schema.type_constraints if len(entry.allowed_type_strs) > 1}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for position, name in enumerate(names):
            formal = formals[min(position, len(formals) - 1)]  # the last one may be variadic
            if name and formal.type_str in free:
                yield name
