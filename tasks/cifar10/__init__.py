"""CIFAR-10: colour images of ten classes."""
