"""ONNX files in, verified TensorRT plans out.

Read profile, builder, device, loaded, parity, plans, building.
"""
