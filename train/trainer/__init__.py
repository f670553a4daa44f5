"""A model, its data and a stage in, checkpoints and a log out: the loop of both stages, which survives any end.

Read stage, loop, losses, gradient, run_folder.
"""
