"""`python -m affserve.client` is `affserve`."""

from __future__ import annotations

from affserve.client.cli import main

if __name__ == "__main__":
    main()
