"""Crops in, one feature per crop on disk out, and the labelled videos that are read from there.

Read gaps, store, decoding, extraction, videos.
"""
