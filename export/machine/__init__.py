"""What this machine has: GPUs, cores and free ports."""
