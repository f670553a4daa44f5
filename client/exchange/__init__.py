"""Finished results in, files of the field's other tools out.

Read exchange, then openface, boris, webvtt, bids, elan; cells prints numbers for all of them.
"""
