"""deploy/systemd: systemd's own tool finds no fault in the units, and our command line takes what they start."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from search import schedule
from search.schedules.recurring import FOLDER
from search.study.config import Executor

UNITS = sorted((Path(__file__).parent.parent / "deploy" / "systemd").glob("pare-*"))
SERVICES = [path for path in UNITS if path.suffix == ".service"]


def section(path: Path, name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return dict(parser[name])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    for path in UNITS:
        text = (
            path.read_text().replace("/opt/pare/.venv/bin/python", sys.executable).replace("/opt/pare", str(tmp_path))
        )
        (tmp_path / path.name.replace("@.", "@nightly_smoke.")).write_text(text)
    for unit in sorted(tmp_path.glob("pare-*")):
        # Beside the tool's own words: `Documentation=` names a file that is there after the installation.
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    broken = tmp_path / "pare-broken.service"
    broken.write_text((tmp_path / "pare-scheduler.service").read_text().replace("KillMode=mixed", "KillMode=most"))
    assert "kill mode" in subprocess.run(["systemd-analyze", "verify", broken], capture_output=True, text=True).stderr


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_what_a_service_starts_is_a_command_of_ours(path: Path) -> None:
    words = shlex.split(section(path, "Service")["ExecStart"].replace("%i", "nightly_smoke"))
    assert words[1:3] == ["-m", "search.schedule"]
    command, name, _, settings = schedule.arguments(words[3:])
    assert command in ("run", "trigger")
    assert not name or name in schedule.checked(FOLDER)
    assert settings["root"] == "/var/lib/pare"


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_gives_a_sweep_the_time_to_stop(path: Path) -> None:
    rules = section(path, "Service")
    assert float(rules["TimeoutStopSec"]) > Executor().grace + 60
    assert (rules["KillSignal"], rules["KillMode"]) == ("SIGTERM", "mixed")
