"""How to search. Knows Optuna and MLflow, never torch or TensorFlow."""

import importlib.util as _util
import sys as _sys
from pathlib import Path as _Path

_NEEDED = ("hydra", "omegaconf", "pydantic", "optuna", "mlflow", "numpy", "rich", "pebble", "sqlalchemy")


def _check_installation() -> None:
    """Before `python -m search.COMMAND` fails on an import: what to run instead. Old Pythons read this file, too."""
    words = list(getattr(_sys, "orig_argv", ()))
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    if module.count(".") != 1 or not module.startswith("search."):
        return  # imported by another program, or a process of our own under another interpreter
    missing = [name for name in _NEEDED if _util.find_spec(name) is None]
    if _sys.version_info[:2] == (3, 11) and not missing:
        return
    reason = f"is Python {_sys.version_info[0]}.{_sys.version_info[1]}, and Pare needs 3.11"
    if _sys.version_info[:2] == (3, 11):
        reason = "does not have " + ", ".join(missing)
    home = _Path(__file__).resolve().parents[1]
    if any(home.glob(".venv/lib/python3.11/site-packages/hydra")):
        remedy = f"Pare is installed in .venv: use {home}/.venv/bin/python"
    else:
        remedy = f"install Pare into .venv with\n  make -C {home} run study=smoke\nthen use .venv/bin/python"
    raise SystemExit(f"{module}: {_sys.executable} {reason}; {remedy}")


_check_installation()
