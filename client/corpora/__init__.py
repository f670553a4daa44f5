"""Photographs and recordings in, corpora for training out: with the crops that a served model will see.

Read photographs, videos.
"""
