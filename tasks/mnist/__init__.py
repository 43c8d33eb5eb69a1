"""MNIST, the first task."""
