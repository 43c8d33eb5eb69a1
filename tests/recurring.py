"""Schedules that several test files use."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

DAILY: dict[str, Any] = {"cron": "0 3 * * *", "study": "smoke"}


def tiny(folder: Path, **changes: Any) -> Path:
    """A folder with the schedule `tiny`: the smoke study with three trials, hours from now."""
    folder.mkdir()
    hour = (datetime.now(UTC) + timedelta(hours=3)).hour
    raw = {"cron": f"0 {hour} * * *", "study": "smoke", "overrides": {"study.confirm.seeds": 0, "executor.workers": 1}}
    (folder / "tiny.yaml").write_text(json.dumps(raw | {"budget": {"trials": 3}} | changes))
    return folder
