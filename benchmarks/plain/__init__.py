"""Pare against the script that an engineer writes without it: `python -m benchmarks.plain --help`."""
