"""Work under another interpreter: on a GPU machine torch and TensorFlow need virtual environments of their own.

A worker process keeps one child, `PYTHON -m search.executors.interpreter`, and hands it one piece of work after the
other through its pipes, so that the framework is imported once.
Nothing of the worker's own environment reaches the child.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from search.errors import WorkerError
from search.signals import follow

ROOT = Path(__file__).parents[2]
# Of an activated environment: they would mix its packages into the child's.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class Child:
    """A process under another interpreter that does one piece of work at a time."""

    def __init__(self, python: Path):
        self.python = python
        env = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        try:
            self._process = subprocess.Popen(
                [str(python), "-m", "search.executors.interpreter"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=env | {"PYTHONPATH": str(ROOT)},
            )
        except OSError as error:
            raise WorkerError(
                f"executor.python: {python} cannot be run ({error.strerror}); name a Python 3.11"
            ) from None

    def do(self, work: Callable[..., Any], args: tuple[Any, ...], progress: Callable[[str, float], None]) -> Any:
        """Run `work(*args, progress)` there; raises what it raised, or WorkerError when the child ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, (work, args))
            while True:
                kind, *said = pickle.load(self._process.stdout)
                if kind == "progress":
                    progress(*said)
                elif kind == "result":
                    return said[0]
                else:
                    raise said[0]
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            raise WorkerError(f"the process under {self.python} ended with exit code {code}") from None


def _send(pipe: IO[bytes], message: Any) -> None:
    pipe.write(pickle.dumps(message))
    pipe.flush()


def main() -> None:
    """The child's side: until the pipe is closed or the parent is gone."""
    # Whatever a framework prints must not get between the messages.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    follow(os.getppid())
    while True:
        try:
            work, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        except Exception as error:
            _send(replies, ("error", WorkerError(f"{sys.executable} cannot import a required module: {error}")))
            return
        try:
            result = work(*args, lambda stage, fraction: _send(replies, ("progress", stage, fraction)))
            _send(replies, ("result", result))
        except Exception as error:
            _send(replies, ("error", error))


if __name__ == "__main__":
    main()
