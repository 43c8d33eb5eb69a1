"""What is logged is read again; logging twice, or after a crash in the middle, changes nothing."""

import resource
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from search.tracking import tracking
from search.tracking.tracking import Tracking, studies
from search.tracking.uri import TrackingError
from search.trial.record import Outcome, TrialRecord
from tests import sweeps
from tests.sweeps import START, failed, record


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweeps.store(tmp_path_factory.mktemp("mlruns"))


def client(tracking: Tracking) -> MlflowClient:
    return MlflowClient(tracking.uri)


def test_a_record_survives_json() -> None:
    one = record(3, duplicate_of=1, reference="int8")
    assert TrialRecord.from_json(one.to_json()) == one
    with pytest.raises(ValueError, match=r"record\.colour: no such field; choose from number"):
        TrialRecord.from_json(one.to_json()[:-1] + ', "colour": 1}')
    with pytest.raises(ValueError, match="not JSON"):
        TrialRecord.from_json("half a rec")
    with pytest.raises(ValueError, match=r"record\.state: 'pruned' is not valid"):
        record(1, state="pruned")
    with pytest.raises(ValueError, match="needs the reason"):
        record(1, state="failed")


def test_trials_are_read_as_they_were_logged(store: Path) -> None:
    tracking = Tracking(store, "read")
    tracking.start_sweep("a", {"budget": {"trials": 3}}, {})
    for number in (2, 0):
        tracking.log_trial("a", record(number))
    tracking.log_trial("a", record(1, reference="int8", duplicate_of=0))
    tracking.log_trial("a", failed(3, "NaN loss"))

    table = Tracking(store, "read").trials("a")

    assert table["number"].tolist() == [0, 1, 2, 3]
    assert table["state"].tolist() == ["complete"] * 3 + ["failed"]
    assert table["feasible"].tolist() == [True, True, True, False]
    assert table["reason"].tolist() == ["", "", "", "NaN loss"]
    assert table["reference"].tolist() == ["", "int8", "", ""]
    assert table["duplicate_of"].tolist() == [-1, 0, -1, -1]
    assert table["words"].tolist() == [record(n).words for n in range(4)]
    assert table["latency_ms"].tolist()[:3] == [record(n).metrics["latency_ms"] for n in range(3)]
    assert np.isnan(table["latency_ms"][3])
    assert table["violation/accuracy_drop at most 0.012"][0] == -0.012
    assert table["pruning.sparsity"].tolist() == [0.0, 0.1, 0.2, 0.3]
    assert table["quantization.scheme"].tolist() == ["none", "qat_int8"] * 2
    assert table["seconds/train"].tolist() == [5.5] * 4
    assert set(table["environment.threads"]) == {1}
    assert set(table["version.torch"]) == {"2.13.0"}


def test_a_trial_becomes_a_flat_run_with_name_status_times_and_files(store: Path, tmp_path: Path) -> None:
    tracking = Tracking(store, "runs")
    tracking.start_sweep("a", {}, {})
    (tmp_path / "model.onnx").write_bytes(b"a model file")
    one = record(5, artifact=str(tmp_path / "model.onnx"))
    run = client(tracking).get_run(tracking.log_trial("a", one))
    assert run.info.run_name == one.words == "half the channels removed, QAT int8"
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", one.start_ms, one.end_ms)
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.tags["pare.sweep"] == "a"
    assert (store / "artifacts/runs" / run.info.run_id / "artifacts/model.onnx").read_bytes() == b"a model file"
    assert {f.path for f in client(tracking).list_artifacts(run.info.run_id)} == {"model.onnx", "recipe.json"}
    history = client(tracking).get_metric_history(run.info.run_id, "epoch/loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.2), (1, 0.1)]
    named = client(tracking).get_run(tracking.log_trial("a", record(7, reference="channel_70")))
    assert named.info.run_name == "70 % of channels removed, QAT int8 (channel_70) [infeasible]"
    assert (named.data.tags["mlflow.runColor"], named.data.tags["pare.front"]) == ("#bfe6dc", "false")
    run = client(tracking).get_run(tracking.log_trial("a", failed(6, "out of memory")))
    assert (run.info.status, run.data.tags["pare.reason"]) == ("FAILED", "out of memory")


def test_logging_twice_leaves_one_run_and_no_metric_twice(store: Path) -> None:
    first = Tracking(store, "twice")
    run_id = first.start_sweep("a", {"seed": 1}, {})
    trial = first.log_trial("a", record(4))
    again = Tracking(store, "twice")
    assert again.start_sweep("a", {"seed": 1}, {}) == run_id
    assert again.log_trial("a", record(4)) == trial
    assert again.log_trial("a", record(4)) == trial
    assert len(again.trials("a")) == 1
    assert again.sweeps() == ["a"]
    assert len(client(again).get_metric_history(trial, "latency_ms")) == 1


class Killed(BaseException):
    """What a kill -9 is to the process: nothing may catch it."""


@pytest.mark.parametrize(
    ("owner", "last_call"),
    [
        (MlflowClient, "log_batch"),
        (tracking, "get_artifact_repository"),
        (MlflowClient, "set_terminated"),
    ],
)
def test_a_run_cut_off_in_the_middle_is_completed(
    store: Path, monkeypatch: pytest.MonkeyPatch, owner: object, last_call: str
) -> None:
    study = f"cut-{last_call}"
    tracking = Tracking(store, study)
    tracking.start_sweep("a", {}, {})
    with monkeypatch.context() as patched:

        def die(*_: object, **__: object) -> None:
            raise Killed

        patched.setattr(owner, last_call, die)
        with pytest.raises(Killed):
            tracking.log_trial("a", record(2))
    half = Tracking(store, study)
    assert half.trials("a")["state"].tolist() == ["running"]
    run = client(half).get_run(half.log_trial("a", record(2)))
    assert run.info.status == "FINISHED"
    assert half.trials("a")["state"].tolist() == ["complete"]
    assert len(client(half).get_metric_history(run.info.run_id, "accuracy")) == 1
    assert {f.path for f in client(half).list_artifacts(run.info.run_id)} == {"recipe.json"}


def test_the_front_is_marked_and_follows_its_changes(store: Path) -> None:
    tracking = Tracking(store, "marks")
    tracking.start_sweep("a", {}, {})
    ids = [tracking.log_trial("a", record(n)) for n in range(3)]
    tracking.mark_front("a", [0, 1], told=2)
    tracking.mark_front("a", [1, 2], told=3)
    Tracking(store, "marks").mark_front("a", [1, 2], told=3)
    assert Tracking(store, "marks").trials("a")["on_front"].tolist() == [False, True, True]
    assert [client(tracking).get_run(i).data.metrics["on_front"] for i in ids] == [0.0, 1.0, 1.0]
    assert [client(tracking).get_run(i).data.tags["pare.front"] for i in ids] == ["false", "true", "true"]
    assert len(client(tracking).get_metric_history(ids[1], "on_front")) == 2
    colours = [client(tracking).get_run(i).data.tags["mlflow.runColor"] for i in ids]
    assert colours == ["#cecece", "#009e73", "#3b3b3b"]


def test_a_sweep_ends_with_front_curve_files_and_note_and_may_go_on(store: Path, tmp_path: Path) -> None:
    tracking = Tracking(store, "ends")
    run_id = tracking.start_sweep("a", {"budget": {"trials": 2}}, {"who": "a test"}, ["accuracy"], [0.9])
    (tmp_path / "front.html").write_text("<p>front</p>")
    picture = tmp_path / "front.png"
    Image.new("RGB", (300, 200)).save(picture)
    for told in (2, 3):
        curve = pd.DataFrame({"number": range(told), "end_ms": [START + n for n in range(told)]})
        curve["hypervolume"] = [0.1, 0.2, 0.25][:told]
        front = pd.DataFrame({"words": ["dense fp32"], "accuracy": [0.99]})
        outcome = Outcome("finished", front, curve, {"front/size": told}, [tmp_path / "front.html"], f"{told} trials")
        tracking.finish_sweep("a", replace(outcome, picture=picture))
    run = client(tracking).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"budget.trials": "2"}
    assert (run.data.tags["who"], run.data.tags["mlflow.note.content"]) == ("a test", "3 trials")
    assert client(tracking).get_experiment(tracking.experiment).tags["mlflow.note.content"] == "3 trials"
    history = client(tracking).get_metric_history(run_id, "hypervolume")
    assert [(m.step, m.value) for m in history] == [(0, 0.1), (1, 0.2), (2, 0.25)]
    folder = store / "artifacts/ends" / run_id / "artifacts"
    assert (folder / "front.csv").read_text() == "words,accuracy\ndense fp32,0.99\n"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "front.csv", "front.html", "images"]
    assert [p.suffix for p in sorted((folder / "images").iterdir())] == [".webp", ".png"], "the newest, and its preview"
    about = tracking.about("a")
    assert (about["objectives"], about["reference"], about["status"]) == (["accuracy"], [0.9], "FINISHED")
    assert tracking.start_sweep("a", {"budget": {"trials": 9}}, {}) == run_id
    assert tracking.about("a")["status"] == "RUNNING"


def test_sweeps_are_told_apart(store: Path) -> None:
    tracking = Tracking(store, "apart")
    for sweep in ("monday", "tuesday"):
        tracking.start_sweep(sweep, {}, {})
    tracking.log_trial("monday", record(0))
    assert tracking.sweeps() == ["monday", "tuesday"]
    assert len(tracking.trials("tuesday")) == 0
    assert studies(store)["apart"] == tracking.experiment
    with pytest.raises(TrackingError, match=r"apart has no sweep 'friday'; recorded are: monday, tuesday"):
        tracking.about("friday")


@pytest.fixture
def _files_cannot_grow() -> Iterator[None]:
    """What a full disk does to a writer: every write past a file's first 4 kB fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_says_what_to_do_and_the_trial_is_logged_later(store: Path, request: pytest.FixtureRequest) -> None:
    tracking = Tracking(store, "full")
    tracking.start_sweep("a", {}, {})
    request.getfixturevalue("_files_cannot_grow")
    with pytest.raises(TrackingError, match=r"mlflow\.db .*check free space .*logged then") as failure:
        tracking.log_trial("a", record(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "\n" not in str(failure.value)
    tracking.log_trial("a", record(0))
    assert Tracking(store, "full").trials("a")["state"].tolist() == ["complete"]


def test_a_broken_database_and_an_absent_server_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(TrackingError, match=r"sqlite.*not a database.*check free space"):
        Tracking(tmp_path, "any")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 .*check that the server runs"):
        Tracking(tmp_path, "any")


def test_another_store_is_honoured(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    Tracking(tmp_path / "unused", "elsewhere")
    with sqlite3.connect(store / "mlflow.db") as database:
        assert database.execute("select count(*) from experiments where name = 'elsewhere'").fetchone() == (1,)
    assert not (tmp_path / "unused" / "mlflow.db").exists()
