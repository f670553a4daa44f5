"""`python -m affserve.train` is `affserve train`: what torchrun can start on every rank."""

from __future__ import annotations

import sys

from affserve.train.cli import train_app
from affserve.train.errors import AffserveError


def main() -> None:
    """Run the command line; an error that is the user's to act on is one line on stderr and exit code 1."""
    try:
        train_app()
    except AffserveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
