"""Whether a sweep's settings are those it was started with: a sweep means one thing."""

from __future__ import annotations

import contextlib
from typing import Any

from pydantic import ValidationError

from search.study.config import Study
from trainers.recipe import flatten

# Settings that may change when a sweep is resumed: they do not decide what a trial means.
_OF_TASK = "task.folder", "task.license"
FREE = ("budget.", "confirm.", "early_stopping.", "description", "published", "warm_start", "prefer", *_OF_TASK)


def changed_settings(stored: dict[str, Any], settings: Study) -> list[str]:
    """What differs between a sweep's settings and these, of all that decides what a trial means; its budget may grow.

    A field that was added since the sweep began had its default then.
    """
    with contextlib.suppress(ValidationError):
        stored = Study.model_validate(stored).model_dump(mode="json")
    old, new = flatten(stored), flatten(settings.model_dump(mode="json"))
    return [
        f"  {key}: was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith(FREE)
    ]
