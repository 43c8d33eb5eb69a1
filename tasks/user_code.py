"""The user's own Python: what a file defines and imports without running it, running it, and whose line raised."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.address import Address, nearest
from tasks.base import Progress, TaskError, TaskSpec, code_digest
from tasks.imports import import_torchvision

FRAMEWORKS = {
    "torch": "pytorch",
    "torchvision": "pytorch",
    "timm": "pytorch",
    "transformers": "pytorch",
    "lightning": "pytorch",
    "pytorch_lightning": "pytorch",
    "tensorflow": "tensorflow",
    "tf_keras": "tensorflow",
    "keras": "tensorflow",
}
TICK_S = 2.0  # between two lines of progress while the user's code runs


def parsed(file: Path) -> ast.Module:
    """The file's syntax tree; raises TaskError with the line when it is not Python."""
    try:
        return ast.parse(file.read_text(), str(file))
    except SyntaxError as error:
        raise TaskError(f"not valid Python: {error.msg}", "code", f"{file.name}:{error.lineno}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{file}: cannot be read: {error}", "code") from None


def defined(file: Path) -> dict[str, ast.stmt]:
    """Name -> statement of what the file defines or assigns at its top level."""
    found: dict[str, ast.stmt] = {}
    for node in parsed(file).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: node for alias in node.names}
    return found


def literal(file: Path, name: str) -> Any:
    """The value of a top-level assignment that is written out; None where it is computed or missing."""
    node = defined(file).get(name)
    value = getattr(node, "value", None)
    try:
        return ast.literal_eval(value) if isinstance(value, ast.AST) else None
    except ValueError:
        return None


def trainers_in(files: Sequence[Path]) -> tuple[str, ...]:
    """The trainers whose frameworks the files import."""
    found = {name.split(".")[0] for file in files for name in _imports(file)}
    return tuple(dict.fromkeys(trainer for name, trainer in FRAMEWORKS.items() if name in found))


def files_of(file: Path) -> list[Path]:
    """The file and the modules beside it that it imports, and those that they import; packages as a whole."""
    found, waiting = [file], [file]
    while waiting:
        reader = waiting.pop()
        for name in _imports(reader):
            for beside in _beside(file.parent, name):
                if beside not in found:
                    found.append(beside)
                    waiting.append(beside)
    return found


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module} if module else {alias.name for alias in node.names}
    return names


def _beside(folder: Path, name: str) -> list[Path]:
    top = folder / name.split(".")[0]
    if (single := top.with_suffix(".py")).is_file():
        return [single]
    return sorted(top.rglob("*.py")) if top.is_dir() and name else []


def load(file: Path) -> ModuleType:
    """Import the user's file under a private name, with its folder first on sys.path.

    The same contents give the same module; changed ones are imported again, with the modules beside it.
    """
    if not file.is_file():
        raise TaskError(f"{file}: does not exist; correct the path", "code")
    files = files_of(file)
    name = f"_pare_{file.stem}_{code_digest(files)}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _forget(files, file.parent)
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        with guarded("code", f"importing {file.name}", file.parent):
            _with_torchvision(functools.partial(found.loader.exec_module, module))
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module


def _with_torchvision(work: Callable[[], Any]) -> Any:
    """What `work` gives; where it fails for a torchvision that was built for another torch, once more with that fixed.

    Many packages import torchvision by the way; where it works, it is not imported for their sake.
    """
    try:
        return work()
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import_torchvision()
    return work()


def _forget(files: Sequence[Path], folder: Path) -> None:
    """Drop modules of this or another folder that were imported under the names of the files beside the user's."""
    importlib.invalidate_caches()
    tops = {path.relative_to(folder).parts[0].removesuffix(".py") for path in files if path.is_relative_to(folder)}
    for name in [name for name in sys.modules if name.split(".")[0] in tops]:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).suffix == ".py" and "site-packages" not in origin:
            del sys.modules[name]


def fetch(spec: TaskSpec, field: str, address: Address) -> tuple[Any, Path | None]:
    """The object that an address in Python code names, and the user's folder (None of an installed module)."""
    if address.kind == "file":
        file = address.path(spec)
        module, where, folder = load(file), address.place, file.parent
    else:
        where, folder = address.place, None
        with guarded("code", f"importing {where}", None):
            module = _with_torchvision(functools.partial(importlib.import_module, address.place))
    if not hasattr(module, address.name):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise TaskError(f"task.{field}: {where} has no {address.name!r}{nearest(address.name, public)}", "code")
    return getattr(module, address.name), folder


@contextmanager
def guarded(step: str, doing: str, folder: Path | None) -> Iterator[None]:
    """What the user's code raises inside becomes a TaskError that names their file and line, and no frame of ours.

    `folder`: where their files lie; without one, and where none of their lines is on the way, the innermost line is
    named. Interrupts and TaskErrors pass.
    """
    try:
        yield
    except TaskError:
        raise
    except Exception as error:
        message, place = _told(error, folder)
        raise TaskError(f"{doing}: {message}", step, place) from error


def _told(error: Exception, folder: Path | None) -> tuple[str, str]:
    if isinstance(error, SyntaxError):
        return f"not valid Python: {error.msg}", f"{Path(error.filename or '').name}:{error.lineno}"
    text = " ".join(str(error).split())
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if folder is not None and Path(f.filename).is_relative_to(folder) and _own(f.filename)]
    if not theirs:
        return message, ""
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in theirs]
    callers = f"; called from {', '.join(reversed(places[:-1][-3:]))}" if len(places) > 1 else ""
    line = f", at `{theirs[-1].line}`" if theirs[-1].line else ""
    return f"{message}{line}{callers}", places[-1]


def _own(filename: str) -> bool:
    return "site-packages" not in filename and not filename.startswith("<")


@contextmanager
def ticking(progress: Progress, stage: str) -> Iterator[None]:
    """Tell `progress` every two seconds for how long the user's code has been running inside."""
    done = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        while not done.wait(TICK_S):
            progress(f"{stage}: {time.monotonic() - start:.0f} s", 0.0)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def called(function: Callable[..., Any], *args: Any, step: str, doing: str, folder: Path | None) -> Any:
    """What the user's function returns; see `guarded`."""
    with guarded(step, doing, folder):
        return function(*args)
