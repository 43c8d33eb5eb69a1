"""One run of a study: asks, evaluates, tells, confirms."""
