"""Video to rows: decode, find faces, ask the server, write results."""
