"""The console script: `pare run study=NAME` is `python -m search.run study=NAME`, and so for every command."""

from __future__ import annotations

import runpy
import sys

COMMANDS = (
    *("new", "doctor", "run", "report", "compare", "pick", "serve", "status", "ui", "dashboard", "schedule"),
    *("pack", "unpack"),
)
HELP = f"""\
pare COMMAND [KEY=VALUE ...]    is `python -m search.COMMAND`; commands: {", ".join(COMMANDS)}
pare COMMAND --help             what a command does and takes
"""


def main() -> None:
    """Run the command named first; exit code 2 for one that does not exist."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(HELP, end="")
        return
    if name not in COMMANDS:
        print(f"pare: {name!r} is not a command; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"search.{name}", run_name="__main__", alter_sys=True)
