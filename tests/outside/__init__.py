"""A trainer as another package would bring it."""
