"""Finished results in, files of the field's other tools out.

Read exchange, columns, openface, boris, webvtt, bids, elan, convert.
"""
