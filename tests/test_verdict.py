"""What is said of a scheduled sweep: its front against the last one's, in the record and to the webhook."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from search.front.summary import existing
from search.schedules import verdict, webhook
from search.schedules.history import History
from search.schedules.recurring import Webhook, read
from tests.linear import LinearTrainer, config, searched
from tests.recurring import DAILY


class Hook:
    """A real HTTP server: answers with each status in turn, the last one for ever; 0 never answers."""

    def __init__(self, *statuses: int):
        self.bodies: list[Any] = []
        self.release = threading.Event()
        left = list(statuses)
        hook = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status = left.pop(0) if len(left) > 1 else left[0]
                if not status:
                    hook.release.wait(30)
                    return
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-token"


@contextmanager
def serving(*statuses: int) -> Iterator[Hook]:
    hook = Hook(*statuses)
    thread = threading.Thread(target=hook.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.release.set()
        hook.server.shutdown()
        hook.server.server_close()


@pytest.mark.parametrize(
    ("statuses", "says", "posts"),
    [
        ((200,), "delivered (127.0.0.1)", 1),
        ((500, 500, 200), "delivered after 3 attempts (127.0.0.1)", 3),
        ((503,), "refused with HTTP 503 after 3 attempts (127.0.0.1)", 3),
        ((404,), "refused with HTTP 404 (127.0.0.1)", 1),
        ((0,), "not delivered: no answer within 0.3 s after 3 attempts (127.0.0.1)", None),
    ],
)
def test_a_webhook_is_tried_again_and_its_address_stays_secret(
    statuses: tuple[int, ...], says: str, posts: int | None
) -> None:
    with serving(*statuses) as hook:
        assert webhook.post(Webhook(url=hook.url, timeout=0.3, retries=2), {"a": None}, pause=0.01) == says
        assert posts is None or hook.bodies == [{"a": None}] * posts


def test_a_webhook_that_is_not_there_is_told_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = webhook.post(Webhook(url="http://127.0.0.1:9/secret", retries=0), {})
    assert re.fullmatch(r"not delivered: .*refused.* \(127\.0\.0\.1\)", closed)
    monkeypatch.delenv("PARE_WEBHOOK", raising=False)
    unset = webhook.post(Webhook(url_env="PARE_WEBHOOK"), {})
    assert unset == "not sent: webhook.url_env: PARE_WEBHOOK is not set to an http:// or https:// address"


def judged(root: Path, folder: Path, sweep: str, **changes: Any) -> tuple[int, History, int]:
    """(exit code, history, run) of the verdict on a run that gave the sweep."""
    history = History(root)
    run = history.ask("nightly", read(folder)["nightly"])
    history.update(run.id, **({"outcome": "running", "started": 1.0, "ended": 2.0, "exit_code": 0} | changes))
    history.update(run.id, sweep=sweep)
    code = verdict.main([f"run={run.id}", f"root={root}", f"schedules={folder}"])
    if history.get(run.id).outcome == "running":
        history.update(run.id, outcome="finished")
    return code, history, run.id


def test_a_worse_front_is_marked_told_and_ends_with_3(planted: LinearTrainer, root: Path, tmp_path: Path) -> None:
    # Accuracy alone: which of the two is worse must not depend on a noisy machine.
    once: dict[str, Any] = {"objectives": ["accuracy"], "budget": {"trials": 1}}
    once |= {"recipe": {"model": "lenet300"}, "references": {"honest": {}}}
    searched(config(root, **once))
    worse = config(root, task={"name": "mnist", "train_size": 300, "validation_size": 500}, **once).model_copy(
        update={"fresh": True}
    )
    searched(worse)
    with serving(500, 200) as hook:
        folder = tmp_path / "schedule"
        folder.mkdir()
        (folder / "nightly.yaml").write_text(json.dumps({**DAILY, "webhook": {"url": hook.url}}))
        code, history, first = judged(root, folder, "lucky-001")
        assert (code, history.get(first).verdict, hook.bodies) == (0, "nothing to compare with yet", [])
        code, history, second = judged(root, folder, "lucky-002")
        assert code == 3
        said = hook.bodies[-1]
    row = history.get(second)
    assert (row.verdict, row.worse, row.webhook) == ("worse beyond noise", 1, "delivered after 2 attempts (127.0.0.1)")
    assert (said["study"], said["sweep"], said["schedule"], said["worse"]) == ("lucky", "lucky-002", "nightly", True)
    assert (said["compared_with"], said["verdict"]) == ("lucky-001", row.verdict)
    assert said["hypervolume"]["newer"] < said["hypervolume"]["older"]
    assert {each["recipe"] for each in said["lost"]} == {"dense fp32"}
    assert 0 < said["lost"][0]["accuracy"] <= 1
    assert said["knee"]["trial"] == 0
    tags = existing(root, "lucky").about("lucky-002")["tags"]
    assert (tags["pare.verdict"], tags["pare.worse"]) == (row.verdict, "true")
    assert (tags["pare.schedule"], tags["pare.compared_with"]) == ("nightly", "lucky-001")


def test_a_failed_sweep_is_told_too(tmp_path: Path) -> None:
    with serving(200) as hook:
        folder = tmp_path / "schedule"
        folder.mkdir()
        (folder / "nightly.yaml").write_text(json.dumps({**DAILY, "webhook": {"url": hook.url}}))
        code, history, run = judged(tmp_path, folder, "smoke-001", exit_code=1, note="the disk is full")
        assert code == 0
        assert (hook.bodies[0]["outcome"], hook.bodies[0]["note"]) == ("failed", "the disk is full")
        assert history.get(run).webhook == "delivered (127.0.0.1)"
    assert "secret-token" not in (tmp_path / "schedule.db").read_bytes().decode(errors="replace")
