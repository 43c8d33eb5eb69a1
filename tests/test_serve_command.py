"""The command line of search.serve: every mistake is told in one sentence before Ray is started."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from search import serve
from serving import start
from tests.test_serving_http import version


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "study: missing; write study=NAME"),
        (["start", "study=m"], 2, "start: no such action; choose from update, rollback, status"),
        (["study=m", "prot=8000"], 2, "port"),
        (["study=m", "port=0"], 2, "port: '0' is not valid; write a number of at least 1"),
        (["study=m", "port=70000"], 2, "write a number from 1 to 65535"),
        (["study=m", "replicas=none"], 2, "replicas: 'none' is not valid; write a number, or auto"),
        (["study=m", "p99_ms=fast"], 2, "p99_ms: 'fast' is not valid"),
        (["study=m", "watch=maybe"], 2, "choose from yes, no"),
        (["study=m", "address=here"], 2, "address: 'here' is not valid; write local, auto, or HOST:PORT"),
        (["study=m", "host=0.0.0.0"], 1, "host: 0.0.0.0 is open to others; set PARE_SERVE_TOKEN to a secret"),
        (["model=nowhere"], 1, "about.json: No such file"),
        (["study=m", "root=nowhere"], 1, "nowhere holds no record; run and pick the study first"),
        (["status", "study=m", "port=1"], 1, "http://127.0.0.1:1 does not answer"),
        (["update", "study=m", "url=http://127.0.0.1:1"], 1, "is it served? write port=... or url=..."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told(
    words: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARE_SERVE_TOKEN", raising=False)
    assert serve.main(words) == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_and_a_damaged_file_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version(tmp_path, 0, "").write(tmp_path / "picked")
    words = [f"model={tmp_path / 'picked'}", f"root={tmp_path}"]
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        assert serve.main([*words, f"port={taken.getsockname()[1]}"]) == 1
    assert "cannot be listened on (Address already in use); name a free one with port=" in capsys.readouterr().err
    assert serve.main([*words, "parts=9"]) == 1
    assert "parts=9: the graph has only" in capsys.readouterr().err
    (tmp_path / "picked" / "model.onnx").write_bytes(b"noise")
    assert serve.main(words) == 1
    assert "its sha256 is not" in capsys.readouterr().err


def test_the_line_says_what_happened_in_between() -> None:
    before = {"replicas": 1, "versions": {"3"}, "counts": [0] * 8, "batched": 0, "batch_rows": 0, "hits": 0}
    before |= {"misses": 0, "errors": 0}
    assert start.text(before, before, 1.0) == "version 3, 1 replica, 0 requests/s"
    now = before | {"replicas": 2, "counts": [4, 2, *[0] * 6], "batched": 2, "batch_rows": 5, "hits": 1, "misses": 3}
    line = start.text(before, now | {"versions": {"3", "4"}, "errors": 1}, 10.0)
    assert line.startswith("version 3/4, 2 replicas, 0.6 requests/s, p50 ")
    assert line.endswith(" ms, batch 2.5, cache 25 %, 1 error")
