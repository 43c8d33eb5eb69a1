"""Which room may import which, held by reading the imports; and what really gets loaded into the driver."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"torch", "torchvision", "torchao", "torch_pruning", "tensorflow", "tf_keras", "keras"}
FRAMEWORKS |= {"tensorflow_model_optimization"}
# room -> what no file in it may import (top-level names, or dotted prefixes of our own modules)
FORBIDDEN = {
    "tasks": {"search", "runtimes", "serving", "packing", "pare", "optuna", "mlflow", "hydra"},
    "trainers": {"search", "runtimes", "optuna", "mlflow", "hydra"},
    "runtimes": {"search", "trainers", "optuna", "mlflow", "hydra"},
    "packing": FRAMEWORKS | {"search", "trainers", "runtimes", "serving", "tasks", "optuna", "mlflow", "hydra"},
    "search": FRAMEWORKS,
    "serving": FRAMEWORKS | {"trainers", "optuna", "mlflow", "hydra"},
    "trainers/pytorch": {"trainers.tensorflow", "tensorflow", "tf_keras"},
    "trainers/tensorflow": {"trainers.pytorch", "torch", "torchao", "torchvision"},
    "trainers/onnx": FRAMEWORKS | {"trainers.pytorch", "trainers.tensorflow"},
}
# The rooms of search/, lowest first: a file imports its own room and lower ones. What stands in no line is a door, a
# command of its own: it may import everything, and only doors import it.
FLOORS = (
    ("search.errors", "search.signals", "search.terminal"),
    ("search.study",),
    ("search.trial",),
    ("search.storage",),
    ("search.executors",),
    ("search.tracking",),
    ("search.command",),
    ("search.front",),
    ("search.sampling",),
    ("search.sweep",),
    ("search.schedules",),
)
OURS = ("search", "tasks", "trainers", "runtimes", "serving", "packing", "pare")
SOURCES = sorted(
    p for room in ("search", "tasks", "trainers", "runtimes", "serving", "packing") for p in (ROOT / room).rglob("*.py")
)


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


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything of ours but tests and benchmarks."""
    files = (path for room in OURS for path in (ROOT / room).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def arrows(sources: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of `sources` that it imports, at its head or inside a function; a package holds its own."""
    found: dict[str, set[str]] = {}
    for name, path in sources.items():
        used = imports(path)
        found[name] = {m for m in sources if m in used and m != name and not name.startswith(f"{m}.")}
    return found


def floor(module: str) -> int:
    """Of its room, counted from below; a door's is above all."""
    return next((i for i, rooms in enumerate(FLOORS) if banned(module, set(rooms))), len(FLOORS))


def upward(graph: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The imports in search/ that point to a higher room, or to another on the same floor."""
    for module, used in graph.items():
        for other in used:
            mine, theirs = (name.split(".")[1:2] for name in (module, other))
            if module.startswith("search.") and other.startswith("search.") and mine != theirs:
                doors = floor(module) == floor(other) == len(FLOORS)
                if floor(other) >= floor(module) and not doors:
                    yield module, other


def test_in_search_imports_point_downward() -> None:
    assert sorted(upward(arrows(modules()))) == []


def test_no_imports_go_round_in_a_circle() -> None:
    TopologicalSorter(arrows(modules())).prepare()  # raises CycleError, which names them


def test_an_upward_import_and_a_circle_would_be_seen(tmp_path: Path) -> None:
    low, high = tmp_path / "low.py", tmp_path / "high.py"
    low.write_text("def f():\n    from search.sweep import driver\n")
    high.write_text("from search.study.space import Space\n")
    graph = arrows({"search.study.space": low, "search.sweep.driver": high})
    assert list(upward(graph)) == [("search.study.space", "search.sweep.driver")]
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()
    assert list(upward({"search.front.page": {"search.report"}, "search.run": {"search.report"}})) == [
        ("search.front.page", "search.report")
    ]


def test_the_decoder_of_packed_files_needs_numpy_and_brotli_alone() -> None:
    """It is copied into other projects."""
    used = {name.split(".")[0] for name in imports(ROOT / "packing" / "decode.py")}
    assert used - set(sys.stdlib_module_names) - {"__future__"} == {"numpy", "brotli"}


def test_only_the_record_imports_mlflow() -> None:
    users = {p.name for p in SOURCES if any(banned(n, {"mlflow"}) for n in imports(p))}
    assert users == {"tracking.py", "registry.py", "served.py", "site.py"}


def test_the_search_knows_no_metric_of_any_task() -> None:
    names = {"accuracy", "accuracy_drop", "test_accuracy", "test_accuracy_drop"}
    for path in (p for p in SOURCES if p.relative_to(ROOT).parts[0] == "search"):
        constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        assert not names & {value for value in constants if isinstance(value, str)}, path


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
