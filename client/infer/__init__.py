"""Videos in, result files out: what `affserve infer` does.

Read run, analyze_files, analyze, read_ahead.
"""
