"""Configurations in, PyTorch modules and checkpoints out: the encoder, the temporal head, their folders on disk.

Read encoder, temporal_head, checkpoint.
"""
