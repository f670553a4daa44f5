"""A camera or stream in, rows while they happen out: what `affserve live` does.

Read run, source, stream, frames, looking, analysis, window.
"""
