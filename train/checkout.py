"""Which commit this code is of; apart, because whoever asks should not have to load PyTorch."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_commit() -> str:
    """Return the commit of the checkout this code runs from, or `unknown` for an installed package."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return "unknown"  # installed from a wheel, perhaps into somebody else's checkout
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
