"""PyTorch modules in, ONNX files out: the graphs that are served and what they cost.

Read layers, encoder, head, onnx_file.
"""
