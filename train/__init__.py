"""Corpus to checkpoint: labels, frames, windows, the two-stage model and its training."""
