"""Trials on a Ray cluster: `executor=ray`. Its nodes share no disk with the driver."""
