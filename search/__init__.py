"""How to search. Knows Optuna and MLflow, never torch or TensorFlow."""
