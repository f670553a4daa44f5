"""ONNX files in, verified TensorRT plans out: of TensorRT for the GPU at hand, of TensorRT for RTX for all RTX cards.

Read profile, builder, plans; for RTX cards compiled, rtx; else tuning, device, loaded, parity, building.
"""
