"""Speed, memory and scale, each run kept as one JSON file."""
