"""The few public names of Pare: what a notebook or another package imports."""
