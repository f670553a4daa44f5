"""A server and its transports, clients, GPUs and faults."""
