"""Batches: the size and wait that measurements give; requests gathered, answered apart, one's mistake its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import batcher as batchers
from serving import policy
from serving.batcher import Batcher, BusyError
from serving.policy import Plan, Timing

Arrays = Mapping[str, np.ndarray]


def timings(each: Mapping[int, float]) -> dict[int, Timing]:
    return {size: Timing(ms, 1.2 * ms) for size, ms in each.items()}


def test_a_batch_is_as_large_as_it_pays_and_the_goal_allows() -> None:
    found = timings({1: 10, 2: 11, 4: 13, 8: 17, 16: 25, 32: 50, 64: 100})  # from 16 on no gain
    assert policy.choose(found, 1000).size == 16
    assert policy.choose(found, 45).size == 8  # two batches of 16 would take 60 ms
    assert policy.choose(found, 30).size == 2
    plan = policy.choose(found, 5)
    assert plan.size == 1
    assert "cannot hold" in plan.why
    assert policy.choose(timings({1: 10, 2: 20, 4: 40}), 1000).size == 1  # batching gains nothing


def test_it_waits_at_most_what_a_second_input_saves() -> None:
    found = timings({1: 10, 2: 12, 4: 16})
    plan = policy.choose(found, 1000)
    assert (plan.size, plan.wait_ms) == (4, 8)
    assert "saves 8 ms" in plan.why
    assert policy.choose(found, 42).wait_ms == 2  # what the goal leaves
    assert policy.choose(timings({1: 0.01, 2: 0.011, 4: 0.012}), 100).wait_ms == 0  # less than the clock's tick


def test_a_small_batch_runs_here_and_a_large_one_in_a_thread() -> None:
    assert policy.choose(timings({1: 0.2, 2: 0.3, 4: 0.6, 8: 1.1, 16: 2.0}), 1000).inline == 4
    assert policy.choose(timings({1: 3, 2: 4}), 1000).inline == 0
    model = Doubling()

    async def main() -> None:
        made = Batcher(model, plan(8, inline=2))
        await made.infer(row(1, rows=2))
        assert model.threads == {"MainThread"}
        await made.infer(row(1, rows=3))
        assert len(model.threads) == 2
        made.close()

    asyncio.run(main())


@given(st.dictionaries(st.sampled_from(policy.SIZES), st.floats(0.001, 500), min_size=1), st.floats(1, 2000))
def test_the_goal_holds_for_a_request_that_meets_two_batches(each: dict[int, float], goal: float) -> None:
    found = timings(each)
    plan = policy.choose(found, goal)
    assert plan.size in found
    if "cannot hold" not in plan.why:
        assert plan.wait_ms + 2 * found[plan.size].slow_ms + policy.OVERHEAD_MS <= goal + 1e-9


def test_measuring_ends_in_time_and_leaves_out_what_is_too_slow() -> None:
    now, ran = 0.0, list[int]()

    def run(size: int) -> None:
        nonlocal now
        ran.append(size)
        now += 0.01 * size

    found = policy.measure(run, seconds=1.0, clock=lambda: now)
    assert found[1].median_ms == pytest.approx(10)
    assert found[4].median_ms == pytest.approx(40)
    assert 256 not in found
    assert now < 4


def plan(size: int = 8, wait_ms: float = 0.0, inline: int = 99) -> Plan:
    return Plan(size, wait_ms, inline, 100.0, "")


class Doubling:
    """A model that doubles, notes its batches, and fails for negative numbers."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.sizes.append(len(inputs["x"]))
        self.threads.add(threading.current_thread().name)
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return {"y": 2 * inputs["x"]}


def row(value: float, width: int = 2, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, width), value, np.float32)}


@pytest.mark.parametrize("inline", [8, 0])
def test_requests_that_come_together_run_together_and_get_their_own_answers(inline: int) -> None:
    model = Doubling()

    async def main() -> None:
        made = Batcher(model, plan(8, inline=inline))
        answers = await asyncio.gather(*(made.infer(row(i)) for i in range(20)))
        for i, (outputs, _) in enumerate(answers):
            np.testing.assert_array_equal(outputs["y"], row(2 * i)["x"])
        made.close()

    asyncio.run(main())
    assert sum(model.sizes) == 20
    assert max(model.sizes) == 8
    assert len(model.sizes) <= 5
    assert ("MainThread" in model.threads) == (inline == 8)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from([2, 3])), min_size=1, max_size=25),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_any_mixture_of_rows_and_shapes_is_answered_row_by_row(
    asked: list[tuple[int, int]], size: int, inline: int
) -> None:
    model = Doubling()

    async def main() -> None:
        made = Batcher(model, plan(size, inline=inline))
        answers = await asyncio.gather(*(made.infer(row(i, w, rows)) for i, (rows, w) in enumerate(asked)))
        for i, ((rows, width), (outputs, _)) in enumerate(zip(asked, answers, strict=True)):
            np.testing.assert_array_equal(outputs["y"], row(2 * i, width, rows)["x"])
        assert made.waiting_bytes == 0
        made.close()

    asyncio.run(main())
    assert max(model.sizes) <= size
    assert sum(model.sizes) == sum(rows for rows, _ in asked)


@pytest.mark.parametrize("inline", [8, 0])
def test_one_bad_request_costs_the_others_nothing(inline: int) -> None:
    async def main() -> list[Any]:
        made = Batcher(Doubling(), plan(8, inline=inline))
        return await asyncio.gather(*(made.infer(row(i)) for i in (1, -1, 3)), return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert isinstance(second, ValueError)
    assert first[0]["y"].max() == 2
    assert third[0]["y"].max() == 6


def test_one_client_alone_never_waits_but_several_do() -> None:
    model = Doubling()

    async def main() -> None:
        made = Batcher(model, plan(2, wait_ms=600_000))  # who waits, waits for company: a full batch ends it
        for _ in range(3):
            await made.infer(row(1))
        await asyncio.gather(made.infer(row(1)), made.infer(row(2)))
        first = asyncio.create_task(made.infer(row(3)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not first.done()
        await asyncio.gather(first, made.infer(row(4)))

    asyncio.run(asyncio.wait_for(main(), 60))
    assert model.sizes == [1, 1, 1, 2, 2]


def test_a_pipeline_has_several_batches_on_their_way() -> None:
    running = most = 0

    async def run(inputs: Arrays) -> dict[str, np.ndarray]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        return {"y": inputs["x"]}

    async def main() -> None:
        made = Batcher(run, plan(2), concurrent=3)
        await asyncio.gather(*(made.infer(row(i)) for i in range(20)))

    asyncio.run(main())
    assert most == 3


def test_a_file_with_a_fixed_batch_runs_each_request_by_itself() -> None:
    model = Doubling()

    async def main() -> None:
        made = Batcher(model, plan(1), batched=False)
        await asyncio.gather(*(made.infer(row(i, rows=4)) for i in range(3)))

    asyncio.run(main())
    assert model.sizes == [4, 4, 4]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchers, "WAITING_BYTES", 100)

    async def main() -> list[Any]:
        made = Batcher(Doubling(), plan(2, inline=0))
        return await asyncio.gather(*(made.infer(row(i)) for i in range(50)), return_exceptions=True)

    found = asyncio.run(main())
    assert any(isinstance(each, BusyError) for each in found)
    assert any(not isinstance(each, Exception) for each in found)


def test_a_client_that_goes_away_disturbs_nobody() -> None:
    async def main() -> None:
        made = Batcher(Doubling(), plan(8))
        gone = asyncio.create_task(made.infer(row(1)))
        kept = asyncio.create_task(made.infer(row(2)))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await kept)[0]["y"].max() == 4
        assert made.waiting_bytes == 0

    asyncio.run(main())
