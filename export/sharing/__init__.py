"""Repositories and encoders for others: fetched and verified, signed, in open_clip's layout.

Read cache, signing, open_clip_hub.
"""
