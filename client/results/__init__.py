"""Rows in, files out and rows back: the columns, their formats and what describes them.

Read rows, formats, output_file, metadata, table, edits.
"""
