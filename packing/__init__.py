"""How few bytes a device must download: packed model files, and smaller graphs."""
