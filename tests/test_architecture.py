"""Which room may import which, held by reading the imports; and what really gets loaded into the driver."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"torch", "torchvision", "torchao", "torch_pruning", "tensorflow", "tf_keras", "keras"}
FRAMEWORKS |= {"tensorflow_model_optimization"}
# room -> what no file in it may import (top-level names, or dotted prefixes of our own modules)
FORBIDDEN = {
    "trainers": {"search", "runtimes", "optuna", "mlflow", "hydra"},
    "runtimes": {"search", "trainers", "optuna", "mlflow", "hydra"},
    "search": FRAMEWORKS,
    "serving": FRAMEWORKS | {"trainers", "optuna", "mlflow", "hydra"},
    "trainers/pytorch": {"trainers.tensorflow", "tensorflow", "tf_keras"},
    "trainers/tensorflow": {"trainers.pytorch", "torch", "torchao", "torchvision"},
}
SOURCES = sorted(p for room in ("search", "trainers", "runtimes", "serving") for p in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def banned(name: str, forbidden: set[str]) -> bool:
    return any(name == f or name.startswith(f"{f}.") for f in forbidden)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    inside = path.relative_to(ROOT).as_posix()
    for room, forbidden in FORBIDDEN.items():
        if inside.startswith(f"{room}/"):
            assert not {n for n in imports(path) if banned(n, forbidden)}


def test_only_the_record_imports_mlflow() -> None:
    users = {p.name for p in SOURCES if any(banned(n, {"mlflow"}) for n in imports(p))}
    assert users == {"tracking.py", "registry.py", "served.py"}


def test_a_forbidden_import_would_be_seen(tmp_path: Path) -> None:
    offender = tmp_path / "offender.py"
    offender.write_text("def f():\n    from search import study\n    import torch.nn\n")
    assert {n for n in imports(offender) if banned(n, FORBIDDEN["trainers"])} == {"search", "search.study"}
    assert banned("torch.nn", FORBIDDEN["search"])


@pytest.mark.parametrize(
    "modules", ["search.sweep.driver, search.report, search.sweep.sweep", "search.trial.objective", "trainers.base"]
)
def test_the_driver_loads_no_framework(modules: str) -> None:
    code = f"import sys, {modules}; print(sorted({{m.split('.')[0] for m in sys.modules}} & {FRAMEWORKS!r}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "[]"


def test_a_worker_loads_neither_optuna_nor_mlflow() -> None:
    code = "import sys, search.trial.objective; print(sorted({'optuna', 'mlflow', 'hydra'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "[]"
