"""A corpus of videos in, a result for each out: what `affserve annotate` does, on this machine or on those of Ray.

Read run, places, annotator, nodes. The work on each video is that of `affserve infer`.
"""
