"""The command line composed with the files of experiments/ by Hydra; what it says of mistakes becomes ConfigError."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search import terminal
from search.study import config, help

GROUPS = ("study", "executor", "storage")
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
    """(the other words, the folders of studies that `--config-dir DIR` names); raises ConfigError."""
    words = iter(argv)
    found, folders = [], []
    for word in words:
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = Path(value or next(words, "")).expanduser().absolute()
            if not folder.is_dir():
                raise config.ConfigError(
                    [f"--config-dir: {folder} is not a folder; name one that holds study/NAME.yaml"]
                )
            folders.append(folder)
        else:
            found.append(word)
    return found, folders


def _search_path(argv: list[str]) -> list[str]:
    """`--config-dir DIR` as the override it stands for."""
    words, folders = _own_folders(argv)
    own = [word for folder in folders for word in (f"hydra.searchpath=[file://{folder}]", f"++folder={folder}")]
    return [*words, *own]


def help_asked(argv: list[str], experiments: Path) -> str | None:
    """What to print instead of running: for `--help` all settings, for a command without words its first screen.

    Raises ConfigError.
    """
    words, folders = _own_folders(argv)
    places = [experiments, *folders]
    if not words:
        return help.first_screen(places, terminal.text_width())
    if not set(words) & {"-h", "--help"}:
        return None
    values: Any = {}
    if named := [word for word in words if word.startswith("study=")]:
        values = _plain(_compose([*named, *_search_path(argv)[len(words) :]], experiments))
    return help.whole(places, terminal.text_width(), values)


def precheck(argv: list[str], experiments: Path) -> list[str]:
    """The command line for Hydra; raises ConfigError if it cannot be composed."""
    argv = overrides(_search_path(argv))
    if not any(a.startswith("study=") for a in argv) and not set(argv) & _HYDRAS_OWN:
        names = ", ".join(help.studies([experiments, *_own_folders(argv)[1]]))
        raise config.ConfigError([f"study: missing; write study=NAME, one of {names}"])
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
        _compose(asked, experiments)
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
    """What Hydra composed, checked; raises ConfigError with every mistake."""
    return config.check(_plain(raw))
