"""A process of its own for measuring: started here, asked one thing in JSON, answering in JSON.

It imports one runtime and nothing of a training framework, and what crashes there crashes alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtimes.base import ArtifactError, LatencyError, load

_ERRORS: dict[str, type[Exception]] = {"artifact": ArtifactError, "latency": LatencyError}


def start(module: str, *runtimes: str) -> subprocess.Popen[str]:
    """`python -m MODULE [RUNTIME …]`: it says `ready` when it has imported the runtimes, and waits to be asked."""
    root = Path(__file__).parent.parent
    # Its working directory is another, and so is what it finds by it: runtimes of the user's own.
    paths = dict.fromkeys([str(root), *(str(Path(path).absolute()) for path in sys.path)])
    return subprocess.Popen(
        [sys.executable, "-m", module, *runtimes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def ask(process: subprocess.Popen[str], request: dict[str, Any], limit: float, what: str = "latency") -> dict[str, Any]:
    """The answer, and the process's end. `what`: begins messages.

    Raises LatencyError when there is no answer within `limit` seconds, and whatever ArtifactError or LatencyError
    answering raised.
    """
    with process:
        try:
            said, complaints = process.communicate(json.dumps(request), timeout=limit)
        except subprocess.TimeoutExpired:
            raise LatencyError(f"{what}: the measuring process gave no answer within {limit:.0f} s") from None
        finally:
            process.kill()  # nothing happens to one that has ended
    if code := process.returncode:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit status {code}"
        last = (complaints.strip().splitlines() or ["no message"])[-1]
        raise LatencyError(f"{what}: the measuring process {how}: {last}")
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    if "error" in answer:
        raise _ERRORS[answer["error"]](answer["message"])
    return answer


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The process itself: imports the runtimes that the command names, says `ready`, reads, answers.

    Standard output carries these two lines alone: what libraries print there goes to standard error.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        load(name)
    print("ready", file=out, flush=True)
    try:
        result = answer(json.load(sys.stdin))
    except tuple(_ERRORS.values()) as problem:
        kind = next(kind for kind, error in _ERRORS.items() if isinstance(problem, error))
        result = {"error": kind, "message": str(problem)}
    json.dump(result, out)
    out.close()
