"""Whole jobs: from a video or a camera to rows."""
