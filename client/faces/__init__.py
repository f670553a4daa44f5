"""Frames in, the crops of the people in them out, each under a number that stays theirs.

Read settings, detectors, tracks, subjects, quality, cropper.
"""
