"""Paths in, frames with true timestamps out, and frames back into files.

Read inputs, source, clock, writer.
"""
