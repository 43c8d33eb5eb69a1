"""Make `.venv` ready: `python3.11 install.py run` (what a study needs) or `dev` (tests and checks too).

The Makefile calls it. Standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
# There from before pip's first change until its last: found at the start, it tells of an install that was cut off,
# and pip takes half a package for a whole one.
UNFINISHED = VENV / ".unfinished"
FILES = ("pyproject.toml", "constraints.txt")
EXTRAS = {"run": "", "dev": "[dev]"}


def main() -> None:
    """Install what is missing or out of date; exits 1 with the end of pip's log when it cannot."""
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    if what not in EXTRAS:
        sys.exit(f"install.py: {what!r} is not a valid set; choose from {', '.join(EXTRAS)}")
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"install.py: needs Python 3.11, this is {sys.version.split()[0]}")
    with (ROOT / "constraints.txt").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another `make` to finish its installation", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        content = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in FILES)).hexdigest()
        if PYTHON.exists() and _stamp(what).exists() and _stamp(what).read_text() == content:
            _stamp(what).touch()  # newer than the files again: nothing in them has changed
            return
        _make_venv()
        _install(what)
        for done in ("run", what):  # dev holds all that run needs
            _stamp(done).write_text(content)
        UNFINISHED.unlink()


def _stamp(what: str) -> Path:
    return VENV / f".{what}"


def _make_venv() -> None:
    """A virtual environment of Python 3.11 with pip; one that is broken or was cut off is made again."""
    check = [str(PYTHON), "-c", "import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))"]
    works = PYTHON.exists() and subprocess.run(check, capture_output=True).returncode == 0
    if not works or UNFINISHED.exists():
        print("making .venv", flush=True)
        for what in EXTRAS:
            _stamp(what).unlink(missing_ok=True)
        # The interpreter's own executable: the one called may be the environment's that is about to be cleared.
        base = getattr(sys, "_base_executable", sys.executable)
        if subprocess.run([base, "-m", "venv", "--clear", VENV]).returncode:
            sys.exit("install.py: no virtual environment could be made; on Debian: apt install python3.11-venv")
    UNFINISHED.touch()


def _install(what: str) -> None:
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [str(PYTHON), "-m", "pip", "install", *options, "-c", "constraints.txt", "-e", f".{EXTRAS[what]}"]
    started = time.monotonic()
    with LOG.open("wb") as log:
        pip = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        _watch(pip, started)
    except KeyboardInterrupt:
        pip.wait()
        sys.exit("\ninterrupted; the next `make` starts the installation again")
    if pip.returncode:
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
        sys.exit(
            f"{tail}\ninstall.py: the installation failed (log: {LOG.relative_to(ROOT)}); fix this, then run it again"
        )
    print(f"installed in {time.monotonic() - started:.0f} s", flush=True)


def _watch(pip: subprocess.Popen[bytes], started: float) -> None:
    """Say how far pip is: on a terminal in one line twice a second, in a log every ten seconds."""
    terminal = sys.stdout.isatty()
    said = 0.0
    while pip.poll() is None:
        now = time.monotonic()
        if terminal or now - said >= 10:
            text = f"installing into .venv: {now - started:3.0f} s, {_stage()}"
            print(f"\r{text[:78]:<78}" if terminal else text, end="" if terminal else "\n", flush=True)
            said = now
        time.sleep(0.5)
    if terminal:
        print("\r" + " " * 78, end="\r", flush=True)


def _stage() -> str:
    log = LOG.read_text(errors="replace")
    if together := re.search(r"^Installing collected packages: (.*)$", log, re.MULTILINE):
        here = len(list(VENV.glob("lib/python*/site-packages/*.dist-info")))
        wanted = together[1].count(",") + 1
        return f"{min(here, wanted)} of {wanted} packages installed"
    collected = re.findall(r"^Collecting (\S+)", log, re.MULTILINE)
    return f"{len(collected)} packages found, {collected[-1]}" if collected else "preparing"


if __name__ == "__main__":
    main()
