"""Checkpoint to running server: ONNX, parity, the model repository, Triton."""
