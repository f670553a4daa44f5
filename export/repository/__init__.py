"""Artefacts in, a Triton model repository with its manifest out; and what stands in one.

Read manifest, templates, placement, exporting, check, inspection.
"""
