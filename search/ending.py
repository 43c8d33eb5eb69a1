"""How `python -m search.run` ends: one clear message and an exit code instead of a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from search import terminal
from search.errors import SettingsError
from search.signals import Terminated
from search.study.config import ConfigError

# Faults of the machine and its surroundings by class name: their modules take seconds to import.
FAULTS = ("SweepError", "TrackingError", "DataError", "TaskError", "CacheError", "WorkerError")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the process with one message.

    Exit code 2 for a usage error, 1 for the machine's faults, 130 for Ctrl-C, 0 for SIGTERM, 141 for a closed pipe.
    """
    try:
        yield
    except ConfigError as error:
        _usage(error.problems)
    except KeyboardInterrupt as error:
        _interrupted(error)
    except OSError as error:
        if interrupt := _interrupt(error):
            _interrupted(interrupt)
        if terminal.reader_gone():
            terminal.leave_closed_pipe()
        if error.errno is None:
            raise
        reason = "no space is left on the disk" if error.errno == errno.ENOSPC else error.strerror
        _fault(f"{error.filename or 'the folder of root='}: {reason}; make it usable, or name another with root=FOLDER")
    except SettingsError as error:
        _usage([str(error)])
    except (HydraException, OmegaConfBaseException) as error:
        _usage([str(error).splitlines()[0]])
    except Exception as error:
        if interrupt := _interrupt(error):
            _interrupted(interrupt)
        if type(error).__name__ not in FAULTS:
            raise
        _fault(str(error))


def _interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or SIGTERM that lies behind the error, if any: libraries turn it into errors of their own."""
    return error if error is None or isinstance(error, KeyboardInterrupt) else _interrupt(error.__context__)


def _interrupted(error: KeyboardInterrupt) -> NoReturn:
    asked = isinstance(error, Terminated)
    how = "Stopped by SIGTERM" if asked else "Interrupted"
    print(f"\n{how}. Finished trials are kept; rerun the same command to resume.", file=sys.stderr)
    sys.exit(0 if asked else 130)


def _usage(problems: list[str]) -> NoReturn:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print("See python -m search.run --help", file=sys.stderr)
    sys.exit(2)


def _fault(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
