"""Folders of Aff-Wild2 in, annotations and crop paths out; splits, folds and checks of a corpus.

Read annotations, affwild2, folds, check.
"""
