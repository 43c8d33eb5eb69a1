"""Sweeps that recur: what `python -m search.schedule` runs."""
