"""Every command on a terminal: help made of the settings themselves, a closed pipe, an installation that is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

from pare.command import COMMANDS
from search import terminal
from search.command import Usage
from search.study import config
from search.study import help as helping
from trainers.recipe import Recipe

ROOT = Path(__file__).parent.parent
SOURCES = [p for room in ("search", "tasks", "trainers", "runtimes", "pare") for p in (ROOT / room).rglob("*.py")]


def keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of the schema, dotted."""
    nested = dict(helping._sections(schema))
    own = [prefix + name for name in schema.model_fields if name not in nested]
    return own + [key for name, section in nested.items() for key in keys(section, f"{prefix}{name}.")]


def test_the_help_explains_every_setting() -> None:
    text = helping.whole([ROOT / "experiments"], 100)
    for key in [*keys(config.Config), *(f"study.recipe.{name}" for name in Recipe(model="").flat())]:
        found = re.search(rf"^  {re.escape(key)}=\S+(.*(\n {{20,}}.*)*)", text, re.MULTILINE)
        assert found, key
        assert len(found[1].split("; ")[0].strip()) > 5, f"{key} is not explained"
    assert "study.sampler.name=auto|ehvi|tpe|tpe_grouped|gp|nsga2|random" in text
    assert "default: 1800" in " ".join(text.split())


def test_the_help_of_a_study_shows_its_values() -> None:
    text = helping.whole([ROOT / "experiments"], 100, {"study": {"budget": {"trials": 77}, "name": "mine"}})
    assert re.search(r"study.budget.trials=N [^=]*; here:\s+77", text)
    assert re.search(r"study.budget.minutes=NUMBER", text)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_line_of_the_help_is_wider_than_the_terminal(width: int) -> None:
    texts = [helping.whole([ROOT / "experiments"], width), helping.first_screen([ROOT / "experiments"], width)]
    texts += [usage.help(width) for usage in usages().values()]
    # Names and commands are never cut: they are there to be copied.
    for line in "\n".join(texts).splitlines():
        assert len(line) <= max(width, 62) or "python -m" in line or "=" in line.split()[0], line


def usages() -> dict[str, Usage]:
    found = {name: getattr(import_module(f"search.{name}"), "HELP", None) for name in COMMANDS}
    return {name: usage for name, usage in found.items() if isinstance(usage, Usage)}


@pytest.mark.parametrize("name", sorted(usages()))
def test_a_commands_help_names_every_setting_with_its_choices_and_examples(name: str) -> None:
    usage, text = usages()[name], usages()[name].help(100)
    assert text.startswith(usage.about[:40])
    for setting in [each for members in usage.groups.values() for each in members]:
        assert f"  {setting.name}={'|'.join(setting.choices) or setting.value}" in text
    assert usage.examples
    for words, _ in usage.examples:
        usage.read([word for word in words.split() if "=" in word and "<" not in word])


@pytest.mark.parametrize(
    "words",
    [["run"], ["run", "--help"], ["run", "--cfg", "job", "study=smoke"], ["status", "--help"], ["report", "--help"]],
    ids=" ".join,
)
def test_a_reader_that_has_gone_ends_a_command_quietly(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", f"search.{words[0]}", *words[1:]]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (terminal.CLOSED_PIPE, "")


def test_a_broken_connection_elsewhere_is_no_closed_pipe() -> None:
    with pytest.raises(BrokenPipeError), terminal.closed_pipe_ends():
        raise BrokenPipeError  # such as a server's that has gone


def test_a_command_before_the_installation_says_what_to_run(tmp_path: Path) -> None:
    base = Path(getattr(sys, "_base_executable", sys.executable))
    shutil.copytree(ROOT / "search", tmp_path / "search")
    asked = [str(base), "-I", "-c", "import sys; print('hydra' in sys.modules)"]
    assert subprocess.run(asked, capture_output=True).returncode == 0
    env = {"PATH": "/usr/bin:/bin", "PYTHONNOUSERSITE": "1"}
    command = [str(base), "-S", "-m", "search.run", "study=smoke"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "does not have hydra" in done.stderr
    assert f"make -C {tmp_path} run study=smoke" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_whatever_is_said_to_be_installed_can_be_installed_so(path: Path) -> None:
    for found in re.finditer(r"pip install[^\n\"]*", path.read_text()):
        assert re.match(r"pip install -e '\.\[({extra}|[\w,-]+)\]' -c constraints\.txt", found[0]), found[0]


def test_warnings_of_other_packages_stay_off_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        terminal.quiet_third_parties()
        warnings.warn_explicit("theirs", UserWarning, "mlflow/x.py", 1, module="mlflow.x")
        warnings.warn_explicit("searching", UserWarning, "x.py", 1, module="searching.x")
        with pytest.warns(UserWarning, match="ours") as ours:
            warnings.warn_explicit("ours", UserWarning, "search/x.py", 1, module="search.x")
        assert len(ours) == 1
    assert "theirs" not in capsys.readouterr().err
