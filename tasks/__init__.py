"""What is compressed: a model, its data, loss and metrics."""
