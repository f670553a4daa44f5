"""Labels that a lab has, in tables, folders and annotation tools, read for a corpus in Aff-Wild2's layout.

Read class_names, photographs, presets, layout, recordings, recorded.
"""
