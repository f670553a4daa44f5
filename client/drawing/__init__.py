"""Rows in, pictures out: overlays, timelines and plots.

Read palette, canvas, overlay, timelines, plots.
"""
