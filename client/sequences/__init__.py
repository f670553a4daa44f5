"""Frames with the faces seen in them and the features of those in, rows out: of a file and of what happens now.

Read seen_frame, declared, row_merger, kept_features.
"""
