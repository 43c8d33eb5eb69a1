"""Which version all replicas serve, and how the next comes: first all load it, then all switch at once.

No Ray and no clock of its own: the replicas' beats go in, the plan that each must follow comes out. A version that one
replica cannot load, or that fails its example there, is refused for all; the one before stays in service.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LOST_S = 10.0  # without a beat a replica counts no more
MARGIN_S = 1.5  # between deciding on a switch and making it: two beats, so that every replica knows of it
PATIENCE_S = 300.0  # for all to load a version


@dataclass
class Member:
    """A replica as its last beat told it."""

    role: str
    seen: float
    serving: str = ""
    ready: frozenset[str] = frozenset()
    snapshot: dict[str, Any] = field(default_factory=dict)


@dataclass
class Versions:
    """The state. Versions are named by their key; `history`: those served before, the last one last.

    `roles`: name -> how many replicas of it there must be for a switch.
    """

    roles: dict[str, int]
    serve: str = ""
    switch_at: float = 0.0
    prepare: str = ""
    since: float = 0.0
    history: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    back: bool = False

    def offer(self, key: str, now: float, back: bool = False) -> str:
        """Ask all replicas to load a version; returns "" or why not. The first one is served as soon as it is loaded.

        `back`: the way to an earlier version: the one that is left is not put into the history.
        """
        if key == self.serve:
            return "it is being served already"
        if self.prepare:
            return f"version {self.prepare[:12]} is being loaded; wait until that is done"
        self.refused.pop(key, None)
        if not self.serve:
            self.serve, self.switch_at = key, now
            return ""
        self.prepare, self.since, self.back = key, now, back
        return ""

    def beat(self, name: str, member: Member, failed: dict[str, str]) -> dict[str, Any]:
        """A replica's beat -> its plan: what to serve, from when (seconds, wall clock), what to hold ready besides."""
        self.members[name] = member
        if self.prepare in failed:
            self._refuse(f"{name}: {failed[self.prepare]}")
        self.step(member.seen)
        return self.plan()

    def plan(self) -> dict[str, Any]:
        """What every replica must do."""
        return {"serve": self.serve, "at": self.switch_at, "prepare": self.prepare}

    def step(self, now: float) -> None:
        """Forget who is lost; decide on the switch where all are ready."""
        self.members = {name: m for name, m in self.members.items() if now - m.seen < LOST_S}
        if not self.prepare:
            return
        if now - self.since > PATIENCE_S:
            self._refuse(f"not every replica had loaded it within {PATIENCE_S:g} s")
        elif self._all_ready():
            if not self.back:
                self.history.append(self.serve)
            elif self.history and self.history[-1] == self.prepare:
                self.history.pop()
            self.serve, self.prepare, self.switch_at = self.prepare, "", now + MARGIN_S

    def settled(self, now: float) -> bool:
        """Whether every replica serves what is to be served."""
        self.step(now)
        there = [m for m in self.members.values() if m.serving == self.serve]
        return bool(self.serve) and not self.prepare and len(there) == len(self.members) > 0 and now >= self.switch_at

    def known(self) -> set[str]:
        """Versions that a replica may still ask for."""
        return {key for key in (self.serve, self.prepare, *self.history[-1:]) if key}

    def _all_ready(self) -> bool:
        if not all(self.prepare in m.ready for m in self.members.values()):
            return False
        counts = {role: sum(m.role == role for m in self.members.values()) for role in self.roles}
        return all(counts[role] >= 1 for role in self.roles)

    def _refuse(self, reason: str) -> None:
        self.refused[self.prepare] = reason
        self.prepare = ""
