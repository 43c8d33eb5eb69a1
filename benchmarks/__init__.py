"""Side-by-side measurements: `python -m benchmarks.NAME` from the repository root."""
