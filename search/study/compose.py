"""What stands between the command line and the search: Hydra's and our own errors as one clear message each."""

from __future__ import annotations

import errno
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search import terminal
from search.errors import SettingsError
from search.signals import Terminated
from search.study import config, help

GROUPS = ("study", "executor", "storage")
# Faults of the machine and its surroundings by class name: their modules take seconds to import.
FAULTS = ("SweepError", "TrackingError", "DataError", "CacheError", "WorkerError")

_MULTIRUN = ("-m", "--multirun")
_HYDRAS_OWN = {"--hydra-help", "--version", "--shell-completion", "-sc"}  # they need no study
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else it prints a traceback of its own and hides the error from us


def overrides(argv: list[str]) -> list[str]:
    """The command line with every `KEY=VALUE` made `++KEY=VALUE`.

    A key that the study file leaves at its default can then be set as well, and a misspelt one is answered by our
    schema, which knows all fields, instead of by Hydra, which knows only those written down.
    """
    plain = re.compile(r"^([A-Za-z_][\w.@]*)=")
    return [
        f"++{a}" if (m := plain.match(a)) and m[1] not in GROUPS and not m[1].startswith("hydra.") else a for a in argv
    ]


def _own_folders(argv: list[str]) -> tuple[list[str], list[Path]]:
    """(the other words, the folders of studies that `--config-dir DIR` names)."""
    words = iter(argv)
    found, folders = [], []
    for word in words:
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = Path(value or next(words, "")).expanduser().absolute()
            if not folder.is_dir():
                _usage([f"--config-dir: {folder} is not a folder; name one that holds study/NAME.yaml"])
            folders.append(folder)
        else:
            found.append(word)
    return found, folders


def _search_path(argv: list[str]) -> list[str]:
    """`--config-dir DIR` as the override it stands for."""
    words, folders = _own_folders(argv)
    return [*words, *(f"hydra.searchpath=[file://{folder}]" for folder in folders)]


def help_asked(argv: list[str], experiments: Path) -> str | None:
    """What to print instead of running: for `--help` all settings, for a command without words its first screen."""
    words, folders = _own_folders(argv)
    places = [experiments, *folders]
    if not words:
        return help.first_screen(places, terminal.text_width())
    if not set(words) & {"-h", "--help"}:
        return None
    values: Any = {}
    if named := [word for word in words if word.startswith("study=")]:
        try:
            values = _plain(_compose([*named, *_search_path(argv)[len(words) :]], experiments))
        except config.ConfigError as error:
            _usage(error.problems)
    return help.whole(places, terminal.text_width(), values)


def precheck(argv: list[str], experiments: Path) -> list[str]:
    """The command line for Hydra; ends with exit code 2 and one message if it cannot be composed."""
    argv = overrides(_search_path(argv))
    if not any(a.startswith("study=") for a in argv) and not set(argv) & _HYDRAS_OWN:
        names = ", ".join(help.studies([experiments, *_own_folders(argv)[1]]))
        _usage([f"study: missing; write study=NAME, one of {names}"])
    words = [a for a in argv if "=" in a or not a.startswith("-")]
    if len(words) < len([a for a in argv if a not in _MULTIRUN]):
        return argv  # flags such as --help, --info or --config-dir: Hydra's own
    multirun = len(words) < len(argv)
    # In a multirun `study=a,b` is a list of choices; the first value of every other list stands for all.
    choices = [a.split("=", 1)[1].split(",") if multirun and a.startswith("study=") else [None] for a in words]
    for chosen in itertools.product(*choices):
        asked = [a if c is None else f"study={c}" for a, c in zip(words, chosen, strict=True)]
        if multirun:
            asked = [a for a in asked if a.startswith("study=")]
        try:
            _compose(asked, experiments)
        except config.ConfigError as error:
            _usage(error.problems)
    return argv


def composed(argv: list[str], experiments: Path) -> config.Config:
    """What this command line would run, without running it; raises ConfigError with its mistakes."""
    return config.check(_plain(_compose(overrides(_search_path(argv)), experiments)))


def _compose(asked: list[str], experiments: Path) -> DictConfig:
    """Raises ConfigError."""
    try:
        with initialize_config_dir(str(experiments), version_base="1.3"):
            return compose("config", overrides=asked)
    except MissingConfigException as error:
        folder, _, name = str(error.missing_cfg_file or "").rpartition("/")
        options = ", ".join(error.options or [])
        raise config.ConfigError([f"{folder or 'config'}: {name!r} does not exist; choose from {options}"]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a file of experiments/"
        problem = getattr(error, "problem", None) or error
        raise config.ConfigError([f"{place}: not valid YAML: {problem}"]) from error
    except OverrideParseException as error:
        example = """'study.constraints=["accuracy_drop <= 0.02"]'"""
        word = error.override.lstrip("+")
        rule = f"{word}: cannot be read; write KEY=VALUE, quoting text as in {example}"
        raise config.ConfigError([rule]) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise config.ConfigError([str(error).splitlines()[0]]) from error
    finally:
        GlobalHydra.instance().clear()


def _plain(raw: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise config.ConfigError([str(error).splitlines()[0]]) from error


def check(raw: DictConfig) -> config.Config:
    """The composed configuration, checked, with `root` made absolute and writable."""
    checked = config.check(_plain(raw))
    return checked.model_copy(update={"root": writable(checked.root)})


def writable(root: Path) -> Path:
    """The folder `root`, absolute, made if missing; raises OSError naming it when nothing can be written there."""
    root = root.expanduser().absolute()
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink()
    return root


def storage(root: Path, name: str = "sqlite") -> str:
    """URL of the Optuna database; raises SettingsError when the environment does not say where the server is."""
    from search.storage.database import address  # SQLAlchemy takes a while to import

    return address(root, name)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the process with one message.

    Exit code 2 for a usage error, 1 for the machine's faults, 130 for Ctrl-C, 0 for SIGTERM, 141 for a closed pipe.
    """
    try:
        yield
    except config.ConfigError as error:
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
