"""The paper's tables: folds, ablations and seeds in, tables beside the paper's figures out.

Read config, runs, study, tables.
"""
