"""The Pareto front: computed, compared, drawn."""
