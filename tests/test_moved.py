"""A copied `root=` folder works without the original: it reports, picks, resumes, and touches nothing outside."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import pick, report
from search.storage.rooted import absolute, relative
from search.tracking import moved
from search.tracking.tracking import Tracking
from search.tracking.uri import TrackingError
from tests.linear import LinearTrainer, config, searched

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("/a/root/file"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(_PLAIN.filter(lambda value: "root:" not in json.dumps(value)))
def test_what_is_stored_comes_back_below_the_root_as_it_is_now(value: object) -> None:
    stored = relative(value, Path("/a/root"))
    assert absolute(stored, Path("/a/root")) == value
    assert "/a/root/" not in json.dumps(stored)
    assert absolute(stored, Path("/b")) == json.loads(json.dumps(value).replace('"/a/root/', '"/b/'))


def everything(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def test_a_copy_works_and_the_original_is_left_alone(
    planted: LinearTrainer, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"confirm": {"seeds": 2, "candidates": 2}}
    sweep = searched(config(root, **few))
    copy = tmp_path / "elsewhere" / "mlruns of another"
    shutil.copytree(root, copy, symlinks=True)
    before = everything(root)
    capsys.readouterr()
    assert report.main(["study=lucky", f"root={copy}"]) == 0
    said = capsys.readouterr()
    assert f"{copy}: moved or copied from {root}; the record now names the files here" in said.err
    assert str(copy / "reports" / "lucky-001" / "report.html") in said.out
    assert pick.main(["study=lucky", f"root={copy}"]) == 0
    assert (copy / "picked" / "lucky" / "model.onnx").exists()
    assert everything(root) == before
    assert capsys.readouterr().err == "", "said once"

    hidden = root.rename(tmp_path / "hidden")
    shutil.rmtree(copy / "picked")
    assert pick.main(["study=lucky", f"root={copy}", "register=no"]) == 0, capsys.readouterr().err
    with closing(sqlite3.connect(copy / "mlflow.db")) as database:
        text = "\n".join(database.iterdump())
    assert f"{root}/" not in text
    again = searched(config(copy, **few))
    assert [record.artifact for record in again.records()] == [
        str(copy / Path(str(record.artifact)).relative_to(root)) for record in sweep.records()
    ]
    assert not root.exists()
    assert hidden.exists()


def test_a_record_that_cannot_be_repaired_says_so(root: Path, tmp_path: Path) -> None:
    Tracking(root, "one")
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copyfile(root / "mlflow.db", copy / "mlflow.db")
    (copy / "mlflow.db").chmod(0o444)
    with closing(sqlite3.connect(f"file:{copy}/mlflow.db?mode=ro", uri=True)) as database:
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("sqlite3.connect", lambda *_, **__: database)
            with pytest.raises(TrackingError, match=r"was moved or copied.*make it writable"):
                moved.repair(copy, said.append)
    assert not said
