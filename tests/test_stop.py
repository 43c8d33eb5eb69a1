"""SIGTERM: running trials finish, but not for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from search.executors.inline import InlineExecutor
from search.front.summary import existing
from search.signals import Stop, Terminated, shielded
from search.storage.database import address
from search.sweep import driver
from search.sweep.sweep import Sweep
from search.trial.objective import evaluate
from tests.linear import LinearTrainer, config, searched
from tests.test_recovery import heed_sigint


def test_a_sigterm_is_noted_or_ends_it_and_a_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = Stop()
        stop.install()
        with pytest.raises(Terminated), stop.noted():
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.asked, stop.overdue(60), stop.overdue(0)) == (True, False, True)
        with pytest.raises(KeyboardInterrupt) as pressed:
            os.kill(os.getpid(), signal.SIGTERM)
        assert not isinstance(pressed.value, Terminated)
        Stop().install()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


class Endless(InlineExecutor):
    """Trials never end; everything else is done at once."""

    def __init__(self, asked: Callable[[], None]):
        self._asked = asked

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        if work is not evaluate:
            return super().submit(key, trainer, work, *args)
        self._asked()
        return Future()


def test_trials_that_take_longer_than_the_grace_are_tried_again(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(root, confirm={"seeds": 0})
    settings = settings.model_copy(update={"executor": settings.executor.model_copy(update={"grace": 0.3})})
    stop = Stop()
    endless = Endless(lambda: stop._signalled(signal.SIGTERM, None))
    with monkeypatch.context() as changed:
        changed.setattr(driver, "start", lambda *args: endless)
        with pytest.raises(Terminated):
            driver.run(settings, Sweep.open(settings.study, address(root)), stop)
    assert existing(root, "lucky").about("lucky-001")["status"] == "KILLED"
    sweep = searched(settings)
    assert len(sweep.records()) == settings.study.budget.trials


@pytest.mark.parametrize("shield", [shielded, contextlib.nullcontext])
def test_what_is_started_shielded_never_sees_ctrl_c_and_we_do(shield: Callable[[], Any]) -> None:
    code = "print(1, flush=True); input()"
    with shield():
        child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=-1, preexec_fn=heed_sigint)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        if shield is shielded:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)
        child.communicate(b"\n")
    assert child.returncode == (0 if shield is shielded else -signal.SIGINT)
