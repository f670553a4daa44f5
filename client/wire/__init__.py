"""Arrays in, Triton's answers out: messages, transports, and what is repeated.

Read frames, transport, messages, frame_carrier, calls, answers, unreachable.
"""
