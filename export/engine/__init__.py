"""ONNX files in, verified TensorRT plans out.

Read profile, builder, loaded, parity, plans, building.
"""
