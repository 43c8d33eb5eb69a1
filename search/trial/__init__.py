"""One trial: what it does in a worker, what it gives, how it is recorded."""
