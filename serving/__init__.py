"""The picked model behind a URL, on Ray Serve."""
