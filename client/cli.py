"""The root of the command line: composes the command groups of all stages and turns errors into exit codes."""
