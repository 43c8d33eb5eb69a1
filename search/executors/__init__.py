"""Where work runs: this process, worker processes, a Ray cluster."""
