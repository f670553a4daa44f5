"""Finished results in, files of the field's other tools out.

Read columns, openface, boris, webvtt, bids, elan, exchange.
"""
