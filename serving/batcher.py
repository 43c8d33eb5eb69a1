"""Requests that arrive together run together. asyncio only; what runs them is given.

A batch starts as soon as the model is free; what arrives meanwhile is the next one. Ray Serve's own `@serve.batch`
waits its time-out for every batch and serves half as many requests (experiments/LOG.md).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from serving.policy import Plan

Arrays = Mapping[str, np.ndarray]
WAITING_BYTES = 256 * 1024 * 1024  # of inputs that may wait; above it a request is turned away


class BusyError(RuntimeError):
    """Too much waits already."""


@dataclass
class _Item:
    inputs: Arrays
    rows: int
    kind: tuple
    future: asyncio.Future


class Batcher:
    """Gathers inputs of the same trailing shapes into batches of up to `plan.size` rows.

    `run`: inputs -> outputs, blocking, or a coroutine (`concurrent` of them at once: a pipeline). `batched` False: each
    request runs by itself, as for a file whose batch is fixed. Belongs to the event loop that calls it.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Arrays] | Callable[[Arrays], Awaitable[Arrays]],
        plan: Plan,
        batched: bool = True,
        concurrent: int = 1,
    ) -> None:
        self.plan = plan
        self.batches = self.rows = 0
        self.waiting_bytes = 0
        self._run, self._batched, self._concurrent = run, batched, concurrent
        self._async = asyncio.iscoroutinefunction(run)
        self._waiting: deque[_Item] = deque()
        self._waiting_rows = self._active = 0
        self._together = False  # whether the last batch held more than one request
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._thread = None if self._async or plan.inline >= plan.size else ThreadPoolExecutor(1, "model")
        self._tasks: set[asyncio.Task] = set()

    async def infer(self, inputs: Arrays) -> tuple[Arrays, int]:
        """(outputs of these inputs, rows of the batch they ran in); raises BusyError, or what the model raises."""
        rows = len(next(iter(inputs.values()))) if self._batched else 1
        if rows <= self.plan.size or not self._batched:
            return await self._queued(inputs, rows)
        cuts = range(0, rows, self.plan.size)
        parts = [{name: value[at : at + self.plan.size] for name, value in inputs.items()} for at in cuts]
        done = await asyncio.gather(*(self._queued(part, len(next(iter(part.values())))) for part in parts))
        return {name: np.concatenate([each[name] for each, _ in done]) for name in done[0][0]}, self.plan.size

    def close(self) -> None:
        """End the thread; what still waits is answered with an error."""
        while self._waiting:
            _settle(self._waiting.popleft().future, BusyError("the server is shutting down"))
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    async def _queued(self, inputs: Arrays, rows: int) -> tuple[Arrays, int]:
        size = sum(value.nbytes for value in inputs.values())
        if self.waiting_bytes + size > WAITING_BYTES and self._waiting:
            raise BusyError(f"{len(self._waiting)} requests wait already")
        loop = asyncio.get_running_loop()
        kind = tuple((name, value.dtype, value.shape[1:]) for name, value in inputs.items())
        item = _Item(inputs, rows, kind, loop.create_future())
        self._waiting.append(item)
        self._waiting_rows += rows
        self.waiting_bytes += size
        try:
            if not self._scheduled:
                self._scheduled = True
                loop.call_soon(self._start)  # after the other requests that were read in this turn of the loop
            result: tuple[Arrays, int] = await item.future
            return result
        finally:
            self.waiting_bytes -= size

    def _start(self) -> None:
        """Start what may run now."""
        self._scheduled = False
        while self._waiting and self._active < self._concurrent:
            full = self._waiting_rows >= self.plan.size or not self._batched
            if not full and self.plan.wait_ms and self._together and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self.plan.wait_ms / 1e3, self._waited)
                return
            if not full and self._timer is not None:
                return
            self._launch()

    def _waited(self) -> None:
        self._timer = None
        self._together = False  # it has waited once; this batch goes
        self._start()

    def _launch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._take()
        self._together = len(batch) > 1
        if self._async or (self._thread is not None and sum(item.rows for item in batch) > self.plan.inline):
            self._active += 1
            task = asyncio.get_running_loop().create_task(self._elsewhere(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        try:
            self._settle(batch, self._run(_joined(batch)))  # type: ignore[arg-type]
        except Exception as problem:  # of the model; each kind its own
            self._alone(batch, problem)

    async def _elsewhere(self, batch: list[_Item]) -> None:
        try:
            self._settle(batch, await self._awaited(_joined(batch)))
        except Exception as problem:
            if len(batch) == 1:
                _settle(batch[0].future, problem)
            for item in batch if len(batch) > 1 else ():
                try:
                    self._settle([item], await self._awaited(item.inputs))
                except Exception as own:
                    _settle(item.future, own)
        finally:
            self._active -= 1
            self._start()

    async def _awaited(self, inputs: Arrays) -> Arrays:
        if self._async:
            return await self._run(inputs)  # type: ignore[misc]
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, inputs)  # type: ignore[arg-type]

    def _alone(self, batch: list[_Item], problem: Exception) -> None:
        """One input that the model refuses must not cost the others their answers."""
        if len(batch) == 1:
            _settle(batch[0].future, problem)
            return
        for item in batch:
            try:
                self._settle([item], self._run(item.inputs))  # type: ignore[arg-type]
            except Exception as own:
                _settle(item.future, own)

    def _take(self) -> list[_Item]:
        """The oldest request and what fits beside it, in order of arrival."""
        first = self._waiting.popleft()
        taken, rows, passed = [first], first.rows, list[_Item]()
        while self._batched and self._waiting and rows < self.plan.size:
            item = self._waiting.popleft()
            if item.kind == first.kind and rows + item.rows <= self.plan.size:
                taken.append(item)
                rows += item.rows
            else:
                passed.append(item)
        self._waiting.extendleft(reversed(passed))
        self._waiting_rows -= rows
        return taken

    def _settle(self, batch: list[_Item], outputs: Arrays) -> None:
        rows = sum(item.rows for item in batch)
        self.batches += 1
        self.rows += rows
        if len(batch) == 1:
            _settle(batch[0].future, (outputs, rows))
            return
        at = 0
        for item in batch:
            _settle(item.future, ({name: v[at : at + item.rows] for name, v in outputs.items()}, rows))
            at += item.rows


def _joined(batch: list[_Item]) -> Arrays:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([item.inputs[name] for item in batch]) for name in batch[0].inputs}


def _settle(future: asyncio.Future, outcome: tuple[Arrays, int] | Exception) -> None:
    if future.done():  # its client has gone
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
