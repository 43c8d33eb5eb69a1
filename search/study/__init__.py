"""What to search: a study's schema, its space and the sampler."""
