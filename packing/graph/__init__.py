"""Smaller ONNX graphs that compute the same: what is dead is removed, what is implied is not written."""
