"""Where the Optuna studies are stored."""
