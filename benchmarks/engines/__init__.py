"""Encoder and head without a server, per engine and precision."""
