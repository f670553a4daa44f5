"""Checkpoints in, files that passed parity out, with the choice of which is served.

Read material, parity, making, timing, choice.
"""
