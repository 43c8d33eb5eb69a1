"""How fast and how right an exported file is. Knows nothing of trainers or of the search."""
