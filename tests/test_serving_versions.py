"""Versions: all replicas load the next before any serves it, then all switch; one that fails anywhere is refused."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serving import package
from serving.conductor import Conductor
from serving.package import Package, PackageError
from serving.settings import Settings
from serving.versions import LOST_S, MARGIN_S, PATIENCE_S, Member, Versions
from tests.linear import linear


def member(now: float, serving: str = "a", ready: tuple[str, ...] = ("a",), role: str = "replica") -> Member:
    return Member(role, now, serving, frozenset(ready))


def test_the_switch_waits_for_the_last_replica_and_is_made_by_all_at_one_time() -> None:
    made = Versions({"replica": 1})
    assert made.offer("a", 0.0) == ""
    for name in ("r1", "r2"):
        made.beat(name, member(1.0), {})
    assert made.offer("b", 1.0) == ""
    assert made.beat("r1", member(1.5, ready=("a", "b")), {}) == {"serve": "a", "at": 0.0, "prepare": "b"}
    plan = made.beat("r2", member(2.0, ready=("a", "b")), {})
    assert plan == {"serve": "b", "at": 2.0 + MARGIN_S, "prepare": ""}
    assert made.beat("r1", member(2.1, ready=("a", "b")), {}) == plan
    assert not made.settled(2.2)
    for name in ("r1", "r2"):
        made.beat(name, member(4.0, "b", ("b",)), {})
    assert made.settled(4.1)
    assert made.history == ["a"]


def test_what_one_replica_cannot_load_nobody_serves() -> None:
    made = Versions({"replica": 1})
    made.offer("a", 0.0)
    made.beat("r1", member(1.0), {})
    made.offer("b", 1.0)
    made.beat("r1", member(1.1, ready=("a", "b")), {})
    made.offer("c", 1.2)
    plan = made.beat("r1", member(1.5), {"c": "it does not load"})
    assert plan["prepare"] == ""
    assert made.refused == {"c": "r1: it does not load"}
    assert made.serve == "b"


def test_a_lost_replica_holds_nobody_up_and_patience_ends() -> None:
    made = Versions({"replica": 1})
    made.offer("a", 0.0)
    made.beat("r1", member(0.0), {})
    made.beat("r2", member(0.0), {})
    made.offer("b", 1.0)
    made.beat("r1", member(2.0, ready=("a", "b")), {})
    assert made.serve == "a"
    made.beat("r1", member(LOST_S + 1, ready=("a", "b")), {})  # r2 has not been heard of since 0
    assert made.serve == "b"
    made.offer("c", 20.0)
    made.beat("r1", member(21.0 + PATIENCE_S, "b", ("b",)), {})
    assert made.prepare == ""
    assert "c" in made.refused


def test_every_part_must_be_there() -> None:
    made = Versions({"replica": 1, "part0": 1})
    made.offer("a", 0.0)
    made.beat("r1", member(0.0), {})
    made.offer("b", 0.0)
    made.beat("r1", member(1.0, ready=("a", "b")), {})
    assert made.serve == "a"
    made.beat("p0", member(1.0, ready=("a", "b"), role="part0"), {})
    assert made.serve == "b"


class Cluster(RuleBasedStateMachine):
    """Replicas that load, fail, die and come back in any order, some of whose beats are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.versions = Versions({"replica": 1})
        self.versions.offer("v0", 0.0)
        self.replicas: dict[str, dict[str, Any]] = {}
        self.failing: set[str] = set()
        self.offered = 0

    @rule(name=st.sampled_from(["r1", "r2", "r3"]))
    def beat(self, name: str) -> None:
        own = self.replicas.setdefault(name, {"ready": {self.versions.serve}, "serving": self.versions.serve})
        said = Member("replica", self.now, own["serving"], frozenset(own["ready"]))
        failed = dict.fromkeys(self.failing, "broken")
        before = self.versions.serve
        plan = self.versions.beat(name, said, failed)
        if plan["serve"] != before:  # a switch was decided: every replica that is known has it
            for other, each in self.replicas.items():
                if other in self.versions.members:
                    assert plan["serve"] in each["ready"]
        if plan["prepare"] and plan["prepare"] not in self.failing:
            own["ready"].add(plan["prepare"])
        if plan["at"] <= self.now:
            own["ready"].add(plan["serve"])
            own["serving"] = plan["serve"]

    @rule(seconds=st.floats(0.1, 4))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(["r1", "r2", "r3"]))
    def kill(self, name: str) -> None:
        self.replicas.pop(name, None)
        self.versions.members.pop(name, None)

    @rule(broken=st.booleans())
    def offer(self, broken: bool) -> None:
        self.offered += 1
        version = f"v{self.offered}"
        if broken:
            self.failing.add(version)
        self.versions.offer(version, self.now)

    @invariant()
    def nothing_broken_is_served(self) -> None:
        assert self.versions.serve not in self.failing


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def folder_with(folder: Path, seed: int, name: str = "m") -> Package:
    """A picked folder whose model multiplies by seeded weights."""
    file = folder.parent / f"weights{seed}.onnx"
    onnx.save(linear(np.random.default_rng(seed).standard_normal((784, 10)).astype(np.float32), False), file)
    made = package.make(file, name, "onnxruntime")
    made.write(folder)
    return made


def test_a_package_is_read_as_it_was_written_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    made = folder_with(tmp_path / "picked", 0)
    read = Package.read(tmp_path / "picked")
    assert read.about == made.about
    assert read.content == made.content
    assert read.example is not None
    np.testing.assert_array_equal(read.example[1]["logits"], made.example[1]["logits"])  # type: ignore[index]
    assert read.about.batched()
    file = tmp_path / "picked" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(PackageError, match="sha256 is not"):
        Package.read(tmp_path / "picked")
    (tmp_path / "picked" / "about.json").write_text(json.dumps({"name": "m"}))
    with pytest.raises(PackageError, match="does not describe a model"):
        Package.read(tmp_path / "picked")
    with pytest.raises(PackageError, match="No such file"):
        Package.read(tmp_path / "nowhere")


def test_a_model_that_answers_its_example_otherwise_is_told(tmp_path: Path) -> None:
    made = folder_with(tmp_path / "picked", 0)
    other = folder_with(tmp_path / "other", 1)
    assert made.example is not None
    assert other.example is not None
    package.check_example(made.about, lambda inputs: made.example[1], made.example)
    with pytest.raises(PackageError, match="off by"):
        package.check_example(made.about, lambda inputs: other.example[1], made.example)

    def fails(inputs: Any) -> Any:
        raise RuntimeError("no kernel")

    with pytest.raises(PackageError, match="fails on its own example: no kernel"):
        package.check_example(made.about, fails, made.example)


class Replicas:
    """Beats of a replica, as the deployment sends them; `broken`: versions that it cannot load."""

    def __init__(self, conductor: Conductor) -> None:
        self.conductor, self.broken = conductor, set[str]()
        self.serving, self.ready = "", set[str]()

    async def run(self) -> None:
        while True:
            said = Member("replica", time.time(), self.serving, frozenset(self.ready), {"version": self.serving})
            plan = await self.conductor.beat("r1", said, dict.fromkeys(self.broken, "it does not load"))
            for key in (plan["serve"], plan["prepare"]):
                if key and key not in self.broken:
                    self.conductor.package(key, None).verify()
                    self.ready.add(key)
            if plan["serve"] and time.time() >= plan["at"]:
                self.serving = plan["serve"]
            await asyncio.sleep(0.02)


def test_update_follows_the_folder_a_bad_file_is_refused_and_rollback_returns(tmp_path: Path) -> None:
    first = folder_with(tmp_path / "picked", 0)

    async def main() -> None:
        conductor = Conductor(Settings("m", model=str(tmp_path / "picked")), parts=1)
        replica = Replicas(conductor)
        beats = asyncio.create_task(replica.run())
        while replica.serving != first.about.key:
            await asyncio.sleep(0.02)
        assert "no other version" in (await conductor.change("rollback", ""))["error"]
        second = folder_with(tmp_path / "picked", 1)
        assert await conductor.change("update", "") == {"version": second.about.label}
        assert replica.serving == second.about.key
        third = folder_with(tmp_path / "picked", 2)
        replica.broken.add(third.about.key)
        refused = await conductor.change("update", "")
        assert "it does not load" in refused["error"]
        assert f"{second.about.label} stays in service" in refused["error"]
        assert replica.serving == second.about.key
        (tmp_path / "picked" / "model.onnx").write_bytes(b"noise")
        assert "sha256" in (await conductor.change("update", ""))["error"]
        assert await conductor.change("rollback", "") == {"version": first.about.label}
        assert replica.serving == first.about.key
        assert list(conductor.state()["replicas"]) == ["r1"]
        beats.cancel()

    asyncio.run(main())


def test_a_watch_that_was_started_again_keeps_what_is_served(tmp_path: Path) -> None:
    first = folder_with(tmp_path / "picked", 0)

    async def main() -> None:
        conductor = Conductor(Settings("m", model=str(tmp_path / "picked")), parts=1)
        replica = Replicas(conductor)
        replica.serving, replica.ready = first.about.key, {first.about.key}
        beats = asyncio.create_task(replica.run())
        while not conductor._versions.serve:
            await asyncio.sleep(0.02)
        assert conductor._versions.serve == first.about.key
        assert conductor._versions.switch_at <= time.time()
        beats.cancel()

    asyncio.run(main())


def test_watching_follows_by_itself(tmp_path: Path) -> None:
    folder_with(tmp_path / "picked", 0)

    async def main() -> None:
        conductor = Conductor(Settings("m", model=str(tmp_path / "picked"), watch=True, every_s=0.05), parts=1)
        replica = Replicas(conductor)
        beats = asyncio.create_task(replica.run())
        while not replica.serving:
            await asyncio.sleep(0.02)
        second = folder_with(tmp_path / "picked", 1)
        while replica.serving != second.about.key:
            await asyncio.sleep(0.02)
        beats.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))
