"""How to compress: recipes in, one exported file out. Knows nothing of search, Optuna or MLflow."""
