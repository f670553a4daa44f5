"""Names for tritonserver's --model-config-name: configs/<name>.pbtxt of a model, and where there is none config.pbtxt.

Apart from the rest of the contract, so that the command line knows its default without loading NumPy.
"""

ONNX_CONFIG_NAME = "onnx"  # ONNX Runtime on a CPU
CUDA_CONFIG_NAME = "onnx-cuda"  # ONNX Runtime on a GPU
TENSORRT_CONFIG_NAME = "tensorrt"  # there is no such file: it is config.pbtxt itself
