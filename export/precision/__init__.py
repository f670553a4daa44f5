"""An ONNX file in, the same in FP16 or INT8 out, and how far each may be from the original.

Read tolerances, half, int8, smoothing, rounding.
"""
