"""Videos in, result files out: what `affserve infer` does.

Read run, work, crew, analyze_files, analyze, read_ahead.
"""
