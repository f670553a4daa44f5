"""Other ways to serve the same model, in environments of their own, compared in one run."""
