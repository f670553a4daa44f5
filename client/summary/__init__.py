"""Finished results in, numbers per person and comparisons of groups out.

Read windows, statistics, comparison, summarise, then report and figure.
"""
