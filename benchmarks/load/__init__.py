"""Many callers against one server: closed loops, open loops, the rate that keeps a promise."""
