"""Runtimes of other packages: an entry point of `pare.runtimes`, `package.module` or `FILE.py`.

Such a module has what `runtimes.base.Runtime` asks for and one line more, `FORMAT = "onnx"`: the suffix of the files
that it loads. That line is read, not run: the driver process asks for it, and imports no library of a runtime.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

GROUP = "pare.runtimes"
NEEDED = ("load", "version")


def names() -> list[str]:
    """The runtimes that installed packages bring, by their entry points."""
    return sorted(importlib.metadata.entry_points(group=GROUP).names)


def is_address(name: str) -> bool:
    """Whether the name can only be a runtime of another package: an entry point, a dotted name or a file."""
    return name.endswith(".py") or "." in name.strip(".") or name in names()


def resolved(name: str) -> str:
    """The same runtime for a process with another working directory: a file by its full path."""
    return str(Path(name).expanduser().absolute()) if name.endswith(".py") else name


def format_of(name: str) -> str:
    """The module's FORMAT; raises ValueError when it is not there or is not written as a plain text."""
    file = _file(name)
    try:
        tree = ast.parse(file.read_text(), str(file))
    except SyntaxError as error:
        raise ValueError(f"runtime: {name!r} is not valid Python: {error.msg} ({file.name}:{error.lineno})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"runtime: {name!r}: {file} cannot be read: {error}") from None
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "FORMAT" for target in targets):
            value = node.value  # type: ignore[attr-defined]
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.isalnum():
                return value.value
    raise ValueError(
        f"runtime: {name!r}: {file.name} does not say which files it loads; write their suffix at its top level: "
        'FORMAT = "onnx"'
    )


@functools.cache
def load(name: str) -> ModuleType:
    """The module, imported; raises ValueError when it cannot be or has not all functions."""
    module = _imported(name)
    if missing := [need for need in NEEDED if not callable(getattr(module, need, None))]:
        raise ValueError(f"runtime: {name!r} has no {' and no '.join(missing)}(); see runtimes.base.Runtime")
    return module


def _imported(name: str) -> ModuleType:
    if not name.endswith(".py"):
        try:
            return importlib.import_module(_module(name))
        except ImportError as error:
            raise ValueError(f"runtime: {name!r} cannot be imported: {error}") from None
    file = _file(name)
    spec = importlib.util.spec_from_file_location(f"pare_runtime_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> str:
    """The module's dotted name."""
    points = importlib.metadata.entry_points(group=GROUP)
    return points[name].module if name in points.names else name


def _file(name: str) -> Path:
    """The module's source; imports at most the packages around it."""
    if name.endswith(".py"):
        file = Path(name).expanduser().absolute()
        if not file.is_file():
            raise ValueError(f"runtime: {name!r}: there is no file {file}")
        return file
    try:
        spec = importlib.util.find_spec(_module(name))
    except (ImportError, ValueError) as error:
        raise ValueError(f"runtime: {name!r} is not installed: {error}") from None
    if spec is None or spec.origin is None:
        raise ValueError(f"runtime: {name!r} is not installed: there is no module {_module(name)}")
    return Path(spec.origin)
