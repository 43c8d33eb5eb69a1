"""The report says what was recorded: table, exports, picture, page and the command line."""

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console

from search import report
from search.front import axes, insight, page, pareto, plots, publish, tables
from search.front.labels import PICTURE, PLOTLY, Panel, labels
from search.front.listing import Listing
from search.front.summary import Summary, read
from search.front.wording import said, than_dense
from search.tracking import confirmed
from search.tracking.tracking import Tracking
from search.tracking.uri import TrackingError
from search.trial.record import TrialRecord
from tests import sweeps
from tests.sweeps import failed, record

RECORDS = [
    record(0, reference="dense"),
    *(record(n) for n in range(1, 11)),
    failed(11, "the loss became NaN <in epoch 1>"),
    record(12, reference="again", duplicate_of=3, metrics=record(3).metrics),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = sweeps.store(tmp_path_factory.mktemp("mlruns"))
    patched = pytest.MonkeyPatch()
    patched.delenv("MLFLOW_TRACKING_URI", raising=False)
    publish.finish(root, sweeps.sweep(root, "two", RECORDS), "two-001", "finished")
    objectives, reference = ("accuracy", "latency_ms", "size_bytes"), (0.98, 0.132, 1.76e6)
    tracking = sweeps.sweep(root, "confirmed", RECORDS, objectives, reference)
    (root / "model.onnx").write_bytes(b"a model file")
    for off in (0.0, 0.001):  # confirmed again after a resume: the later figures count, lower as they are
        points = [_again(root, number, number != 2, off) for number in (1, 3, 2)]
        tracking.log_confirmed("confirmed-001", points)
    publish.finish(root, tracking, "confirmed-001", "finished")
    patched.undo()
    return root


def _again(root: Path, number: int, on_front: bool, off: float) -> dict[str, object]:
    """What confirmation finds: `off` less accuracy than the search, an interval around each figure."""
    was = record(number).metrics
    means = {name: was[name] for name in ("latency_ms", "latency_ratio", "size_bytes", "size_ratio")}
    means |= {"accuracy": was["accuracy"] - off, "test_accuracy": was["accuracy"] - 2 * off}
    metrics = {name: (mean, 0.999 * mean, 1.001 * mean) for name, mean in means.items()}
    chosen = str(root / "model.onnx")
    return {"number": number, "metrics": metrics, "on_front": on_front, "chosen": chosen, "seeds": 3}


def expected_front() -> list[int]:
    rows = [r for r in RECORDS if r.state == "complete" and r.feasible]
    values = pd.DataFrame([r.metrics for r in rows])[["accuracy", "latency_ms"]].to_numpy()
    kept = pareto.front(values, ("maximize", "minimize"))
    members = [r for r, on_front in zip(rows, kept, strict=True) if on_front]
    return [r.number for r in sorted(members, key=lambda r: -r.metrics["accuracy"])]


def test_what_the_search_had_promised_stands_beside_and_what_was_left_out_is_said(root: Path) -> None:
    summary = read(root, "confirmed")
    raw = set(expected_front())
    left_out = summary.unconfirmed["number"].tolist()
    assert set(left_out) <= raw - {1, 2, 3}
    assert len(left_out) > 1
    said_of = report.rendered(summary, "md", "front")
    assert f"○ {len(left_out)} trials are on the search's front but not confirmed" in said_of
    assert "python -m search.run study=confirmed study.confirm.candidates=null" in said_of
    hollow = [line.split("|")[2].strip() for line in said_of.splitlines() if line.startswith("| ○")]
    assert hollow == [str(number) for number in left_out]
    head, row = (next(x for x in said_of.splitlines() if x.startswith(start)).split("|") for start in ("|  |", "| ◆"))
    promised = row[head.index(" in search ")].strip()
    assert promised == f"{100 * record(int(row[2])).metrics['accuracy']:.2f} %"


def test_the_summary_judges_the_recorded_values(root: Path) -> None:
    summary = read(root, "two")
    assert summary.front["number"].tolist() == expected_front()
    assert len(expected_front()) >= 3
    assert summary.knee is not None
    assert summary.knee["number"] in expected_front()
    assert summary.counts() == {
        "trials": 13,
        "front": len(expected_front()),
        "complete": 12,
        "infeasible": 2,
        "stopped": 0,
        "failed": 1,
    }
    assert summary.recorded
    volumes = summary.hypervolume["hypervolume"]
    assert volumes.is_monotonic_increasing
    assert volumes.iloc[-1] > volumes.iloc[0]


def test_finishing_marks_the_front_and_records_figures_files_and_note(root: Path) -> None:
    tracking = Tracking(root, "two")
    marked = tracking.trials("two-001")
    assert sorted(marked[marked["on_front"]]["number"]) == sorted(expected_front())
    run = MlflowClient(tracking.uri).get_run(tracking.about("two-001")["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["trials/front"] == len(expected_front())
    assert run.data.metrics["front/best_accuracy"] == 0.992
    assert run.data.metrics["hypervolume"] == pytest.approx(read(root, "two").hypervolume["hypervolume"].max())
    assert run.data.tags["mlflow.note.content"].count("\n| ") == len(expected_front()) + 1
    files = {f.path for f in MlflowClient(tracking.uri).list_artifacts(run.info.run_id)}
    assert files == {"config.json", "front.csv", "front.png", "front_small.png", "images", "report.html"}
    publish.finish(root, tracking, "two-001", "interrupted")
    again = MlflowClient(tracking.uri).get_run(run.info.run_id)
    assert again.info.status == "KILLED"
    assert again.data.metrics == run.data.metrics
    assert len(MlflowClient(tracking.uri).get_metric_history(run.info.run_id, "hypervolume")) == len(RECORDS)


def printed(root: Path, study: str) -> str:
    out = StringIO()
    report.say(root, study, console=Console(file=out, width=160))
    return out.getvalue()


def test_the_table_names_recipes_figures_and_ratios_and_marks_the_knee(root: Path) -> None:
    text = printed(root, "two")
    summary = read(root, "two")
    lines = text.splitlines()
    rows = lines[lines.index(next(line for line in lines if line.startswith("─"))) + 1 :][: len(summary.front)]
    for row, (_, trial) in zip(rows, summary.front.iterrows(), strict=True):
        name = f" ({trial['reference']})" if trial["reference"] else ""
        cells = re.split(r"\s{2,}", row[2:].strip())
        assert cells[:3] == [str(trial["number"]), trial["words"] + name, f"{100 * trial['accuracy']:.2f} %"]
        assert cells[3].startswith(f"{trial['latency_ms']:.4f} ms")
        assert cells[4] == f"{1 / trial['latency_ratio']:.1f}×"
        assert row.startswith("◆") == bool(trial["knee"])
    assert re.search(r"2 of \d+ trials break a constraint, 1 failed", text)
    assert str(root / "reports/two-001/report.html") in text
    assert "python -m search.ui" in text


def test_confirmed_figures_replace_the_search_s_and_stand_beside_them(root: Path) -> None:
    summary = read(root, "confirmed")
    assert summary.front["number"].tolist() == [1, 3]
    row = summary.trials[summary.trials["number"] == 3].iloc[0]
    assert row["accuracy"] == pytest.approx(record(3).metrics["accuracy"] - 0.001)
    assert row["search/accuracy"] == record(3).metrics["accuracy"]
    assert row["test_accuracy"] == pytest.approx(record(3).metrics["accuracy"] - 0.002)
    assert summary.trials["accuracy"][4] == record(4).metrics["accuracy"]
    assert said(summary.metrics, row, "accuracy") == f"{100 * row['accuracy']:.2f} ± 0.10 %"
    text = printed(root, "confirmed")
    assert "Test accuracy" in text
    mean = sum(record(n).metrics["accuracy"] for n in (1, 2, 3)) / 3
    assert f"validation accuracy {100 * mean:.2f} % in the search, {100 * mean - 0.1:.2f} % confirmed" in text
    html = page.page(summary)
    assert html.count("in the search</th>") == 3


def test_ratios_are_said_the_right_way_round() -> None:
    row = pd.Series({"latency_ratio": 0.4, "size_ratio": 0.05})
    assert than_dense(row) == "2.5× faster, 20× smaller"
    assert than_dense(pd.Series({"latency_ratio": 1.25, "size_ratio": 0.99})) == "1.2× slower, as large"
    assert than_dense(pd.Series({"accuracy": 0.9})) == ""


@pytest.mark.parametrize("study", ["two", "confirmed"])
def test_the_page_is_self_contained_and_holds_every_trial(root: Path, study: str) -> None:
    html = (root / f"reports/{study}-001/report.html").read_text()
    assert len(html.encode()) < 1.6e6
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert "Plotly.react" in html
    assert not re.search(r"src\s*=|@import|url\(", outside)
    links = set(re.findall(r"href='?([^' >]*)", outside))
    assert all(link.startswith(("#", "http://127.0.0.1:5000/#/experiments/")) for link in links)
    table = outside[outside.index("<table id=trials>") :].split("</table>")[0]
    assert table.count("<tr class=") == len(RECORDS)
    assert table.count(f"python -m search.pick study={study} sweep={study}-001 trial=") == len(RECORDS) - 1
    assert "the loss became NaN &lt;in epoch 1&gt;" in table
    assert "<in epoch 1>" not in outside
    for title in ("Hypervolume over trials", "parallel coordinates", "What each stage cost"):
        assert title in outside
    assert outside.count("aria-label='Validation accuracy against") == (1 if study == "two" else 2)
    assert "The dense model, before compression" in outside
    assert "a CPU" in outside


def test_charts_hold_the_points_that_the_table_holds(root: Path) -> None:
    summary = read(root, "two")
    drawn = plots.front(summary, "latency_ms", "accuracy").data
    traces = {trace.name: trace for trace in drawn if trace.name and trace.showlegend is False}
    assert list(traces["on the front"].y) == pytest.approx([100 * a for a in summary.front["accuracy"]])
    assert {name: len(trace.x) for name, trace in traces.items()} == {
        "on the front": len(expected_front()),
        "not on the front": 10 - len(expected_front()),
        "infeasible": 2,
    }
    front = traces["on the front"]
    assert list(front.error_x.array) == pytest.approx([0.02 * v for v in summary.front["latency_ms"]])
    assert not front.error_y.visible
    schemes = ["#009e73" if n % 2 else "#3b3b3b" for n in summary.front["number"]]
    assert list(front.marker.color) == schemes
    stairs = axes.staircase(read(root, "confirmed"), "size_bytes", "accuracy")
    assert stairs["size_bytes"].is_monotonic_increasing
    assert stairs["accuracy"].is_monotonic_increasing


@functools.cache
def _crowd(root: Path, count: int) -> Summary:
    """Trials scattered at random, four of them references."""
    random = np.random.default_rng(count)
    names = {0: "dense", 1: "ptq_int8", 2: "channel_50", 3: "sparse_90_qat"}

    def scattered(number: int) -> TrialRecord:
        known, factor = dict(record(number).metrics), float(np.exp(random.normal(0, 0.25)))
        known |= {name: factor * known[name] for name in known if name.startswith("latency")}
        known["accuracy"] -= abs(float(random.normal(0, 0.003)))
        return replace(record(number), metrics=known, reference=names.get(number), feasible=known["accuracy"] > 0.98)

    return _small(root, f"crowd{count}", [scattered(number) for number in range(count)])


@pytest.mark.cluster
def test_the_page_of_200_trials_stays_below_1_6_mb(root: Path) -> None:
    summary = _crowd(root, 200)
    layer = {"type": "Conv", "difference": 0.5, "ms": 0.1, "size_bytes": 10**6}
    one = {"layers": [{"name": f"layer{i}.conv"} | layer for i in range(20)], "rest": {"Relu": 0.01}}
    found = {"dense": {"pytorch/lenet5": one}, "trials": {str(number): one for number in summary.front["number"]}}
    made = page.page(summary, found)
    assert made.count("<details") == 1 + len(summary.front)
    assert len(made.encode()) < 1.6e6


@pytest.mark.parametrize("count", [2, 5, 18, 200])
@pytest.mark.parametrize("panel", [PLOTLY, PICTURE])
def test_labels_stand_over_no_point_and_no_other_label(root: Path, count: int, panel: Panel) -> None:
    summary = _crowd(root, count)
    placed = labels(summary, "latency_ms", "accuracy", panel)
    assert {"knee", "dense = knee", "ptq int8 = knee"} & {each.name for each in placed}

    def at(rows: pd.DataFrame | pd.Series) -> np.ndarray:
        ends = [(axes.fraction(summary, axes.shown(summary.metrics, rows, n), n)) for n in ("latency_ms", "accuracy")]
        return np.column_stack(ends) * (panel.width, panel.height)

    points = at(summary.complete)
    boxes: list[tuple[float, ...]] = []
    for each in placed:
        (x, y), width = at(each.row)[0] + (each.right, each.up), panel.letter * len(each.name)
        left = x - {"right": 0, "left": width, "middle": width / 2}[each.side]
        box = (left, y - panel.line / 2, left + width, y + panel.line / 2)
        assert 0 <= box[0] < box[2] <= panel.width
        inside = (points > box[:2]) & (points < box[2:])
        assert not inside.all(axis=1).any(), each.name
        assert all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in boxes)
        boxes.append(box)


def test_axes_are_logarithmic_where_that_spreads_the_data(root: Path) -> None:
    def scale(*factors: float) -> str:
        rows = [
            replace(record(n), metrics=record(n).metrics | {"latency_ms": factor}) for n, factor in enumerate(factors)
        ]
        few = read(root, "two")
        table = few.trials.iloc[: len(rows)].assign(latency_ms=[r.metrics["latency_ms"] for r in rows], reference="x")
        return axes.scale(replace(few, trials=table.assign(state="complete")), "latency_ms")

    assert scale(1, 2, 4, 8, 16) == "log"
    assert scale(1, 2, 3, 4, 5, 6) == "linear"
    assert scale(1, 1.1, 1.3, 2.9) == "linear", "a small span needs no logarithm"
    assert scale(0, 1, 100) == "linear", "0 has none"


def test_no_interval_of_the_front_is_cut(root: Path) -> None:
    summary = read(root, "confirmed")
    for name in ("latency_ms", "accuracy"):
        low, high = axes.view(summary, name) or (0, 0)
        unit = summary.metrics[name].scale
        assert low < unit * summary.front[f"{name}_low"].min()
        assert high > unit * summary.front[f"{name}_high"].max()
    assert axes.cut(summary) == 0
    wild = summary.trials.assign(latency_ms_high=summary.trials["latency_ms_high"] * 1000)
    noisy = replace(summary, trials=wild)
    assert axes.cut(noisy) > 0
    assert (axes.view(noisy, "latency_ms") or (0, 0))[1] < 10 * summary.complete["latency_ms"].max()
    assert "reach beyond the chart" in " ".join(plots.explained(noisy))


def test_the_marks_are_explained_as_far_as_they_occur(root: Path) -> None:
    said_of = " ".join(plots.explained(read(root, "confirmed")))
    for word in ("Large and full", "fresh trainings", "Faded", "lucky", "Hollow", "×:", "Dotted line", "Bars:", "Ring"):
        assert word in said_of
    assert "Hollow" not in " ".join(plots.explained(read(root, "two")))
    assert plots.explained(read(root, "two"))[0] == "Large and full: on the front (of a single training)."


def test_importances_find_what_decides_and_say_how_surely(root: Path) -> None:
    assert insight.importances(read(root, "two")) == {}, "few trials tell of luck"
    few = read(root, "two")
    many = replace(few, trials=pd.concat([few.complete] * 5, ignore_index=True))
    shares = insight.importances(many)
    assert set(shares) == {"accuracy", "latency_ms"}
    accuracy = {name: share for name, (share, _) in shares["accuracy"].items()}
    assert max(accuracy, key=lambda name: accuracy[name]) == "pruning.sparsity"
    assert shares["latency_ms"]["quantization.scheme"][0] > accuracy["quantization.scheme"]
    assert sum(accuracy.values()) == pytest.approx(1)
    assert all(half > 0 for found in shares.values() for _, half in found.values())


def test_stage_costs_add_up(root: Path) -> None:
    table = insight.stage_seconds(read(root, "two"))
    assert table["stage"].tolist() == ["train", "latency", "export"]
    assert table["total"].tolist() == pytest.approx([5.5 * 13, 1.2 * 13, 0.8 * 13])


def test_the_picture_is_drawn(root: Path) -> None:
    pixels = matplotlib.image.imread(root / "reports/two-001/front.png")
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 900
    colours = {tuple((255 * p[:3]).round().astype(int)) for p in pixels.reshape(-1, pixels.shape[2])[::3]}
    assert (0x00, 0x9E, 0x73) in colours


def _small(root: Path, study: str, records: Sequence[TrialRecord]) -> Summary:
    sweeps.sweep(root, study, records)
    return read(root, study)


def test_no_feasible_trial_is_said_with_the_nearest(root: Path) -> None:
    bad = [replace(record(n), feasible=False, violations={"accuracy_drop <= 0": 0.1 / n}) for n in (1, 2, 3)]
    summary = _small(root, "hopeless", bad)
    assert summary.nearest == 3
    assert summary.knee is None
    words = f"No trial meets the constraints; nearest is trial 3, {record(3).words}: accuracy drop "
    assert words in page.page(summary)
    assert "nearest is trial 3" in printed(root, "hopeless")


def test_a_sweep_without_trials_and_one_with_failures_only_are_reported(root: Path) -> None:
    assert _small(root, "empty", []).front.empty
    assert "No trial has been measured" in printed(root, "empty")
    _small(root, "broken", [failed(0, "no such file")])
    assert "No trial has been measured" in printed(root, "broken")
    assert "no such file" in (root / "reports/broken-001/report.html").read_text()


class Killed(BaseException):
    """What a kill -9 is to the process: nothing may catch it."""


def test_a_half_logged_trial_does_not_stop_the_report(root: Path) -> None:
    tracking = sweeps.sweep(root, "half", [record(0), record(1)])
    with pytest.MonkeyPatch.context() as patched:

        def die(*_: object, **__: object) -> None:
            raise Killed

        patched.setattr(MlflowClient, "set_terminated", die)
        with pytest.raises(Killed):
            tracking.log_trial("half-001", record(2))
    summary = publish.finish(root, Tracking(root, "half"), "half-001", "interrupted")
    assert summary.counts()["trials"] == 3
    assert summary.hypervolume["number"].tolist() == [0, 1]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = report.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_exports_csv_and_json(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "study=two", f"root={root}", "format=json")
    rows = json.loads(out)
    assert code == 0
    assert [row["number"] for row in rows] == expected_front()
    assert rows[0]["size_bytes"] == 1_600_000
    assert rows[0]["pruning.granularity"] == "none"
    file = tmp_path / "all.csv"
    assert run(capsys, "study=two", f"root={root}", "rows=all", f"out={file}")[:2] == (0, "")
    table = pd.read_csv(file)
    assert table["number"].tolist() == list(range(13))
    assert table["accuracy"].tolist()[:11] == [record(n).metrics["accuracy"] for n in range(11)]
    assert run(capsys, "study=two", f"root={root}", "format=md")[1].count("\n| ") == len(expected_front()) + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stduy=two"], r"stduy=two: no such argument \(did you mean study=\?\); choose from study=, sweep="),
        (["study="], "study: needs a value"),
        (["format=csv"], "study: missing"),
        (["study=two", "format=xml"], "format: 'xml' is not valid; choose from table, csv, json, html, md"),
        (["study=two", "rows=some"], "rows: 'some' is not valid; choose from front, all"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_the_remedy(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert "Traceback" not in err


def test_what_is_not_recorded_is_said_and_nothing_is_created(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "study=two", f"root={tmp_path / 'none'}")[0] == 1
    assert not (tmp_path / "none").exists()
    _, _, err = run(capsys, "study=tow", f"root={root}")
    assert "study: 'tow' is not recorded" in err
    assert "two" in err
    with pytest.raises(TrackingError, match="two has no sweep 'two-002'; recorded are: two-001"):
        read(root, "two", "two-002")
    assert run(capsys, "--help")[:2] == (0, report.HELP)


def test_a_copy_of_a_confirmed_trial_shows_what_was_confirmed(root: Path) -> None:
    summary = read(root, "confirmed")
    copy, original = (summary.trials[summary.trials["number"] == n].iloc[0] for n in (12, 3))
    assert copy["accuracy"] == original["accuracy"] < copy["search/accuracy"]
    assert (copy["confirmed"], original["confirmed"]) == ("copy", "front")
    assert not copy["on_front"]
    assert not copy["unconfirmed"]
    assert 12 not in summary.confirmed["number"].tolist()


def test_the_record_says_of_every_trial_what_the_report_says(root: Path) -> None:
    """One truth: MLflow's own table and charts read the same figures under the same names."""
    summary, client = read(root, "confirmed"), MlflowClient(Tracking(root, "confirmed").uri)
    for _, row in summary.complete.iterrows():
        run = client.get_run(row["run_id"])
        for name in summary.objectives:
            assert run.data.metrics[name] == row[name]
        assert run.data.metrics["on_front"] == float(row["on_front"])
        assert ("fresh trainings" in run.data.tags.get("mlflow.note.content", "")) == bool(row["confirmed"])


def test_what_is_no_longer_confirmed_gets_the_searchs_figures_back() -> None:
    before = {"accuracy": 0.99, "latency_ms": 1.0, "latency_ms_low": 0.9, "latency_ms_high": 1.1, "seconds/train": 3.0}
    point = {"metrics": {"accuracy": (0.98, 0.97, 0.99), "latency_ms": (1.2, 1.1, 1.3), "test_accuracy": (0.9, 0.8, 1)}}
    after = before | confirmed.figures(before, point)
    assert (after["accuracy"], after["search/accuracy"], after["latency_ms_low"]) == (0.98, 0.99, 1.1)
    again = after | confirmed.figures(after, {"metrics": {"accuracy": (0.97, 0.96, 0.98)}})
    assert (again["accuracy"], again["search/accuracy"]) == (0.97, 0.99)
    assert "search/accuracy_low" not in again
    back = after | confirmed.figures(after, None)
    assert {name: back[name] for name in before} == before
    assert math.isnan(back["test_accuracy"])
    assert math.isnan(back["accuracy_low"])


WIDTHS = [40, 60, 80, 100, 120, 200]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("study", ["two", "confirmed"])
def test_the_table_fits_its_terminal_and_cuts_nothing(root: Path, study: str, width: int) -> None:
    made = tables.listing(read(root, study))
    lines = [line.plain for line in made.lines(width)]
    assert max(map(len, lines)) <= width
    shown, _ = made.fitted(width)
    assert "Accuracy" in [column.head for column in shown]
    text = "\n".join(lines)
    for row, (trial, words) in enumerate(zip(made.trials, made.recipes, strict=True)):
        line = next(line for line in lines if re.match(rf"[◆○ ] +{trial} ", line))
        assert line.startswith(made.marks[row] or " ")
        for column in shown:
            assert column.cells[row] in line
        assert all(word in text for word in words.split())
    assert "…" not in text


def test_a_wider_terminal_shows_more_and_never_less(root: Path) -> None:
    made = tables.listing(read(root, "confirmed"))
    shown = [{column.head for column in made.fitted(width)[0]} for width in WIDTHS]
    assert all(less <= more for less, more in pairwise(shown))
    assert {"Accuracy", "Faster", "Smaller"} <= shown[1]
    assert shown[-1] == {column.head for column in made.columns}


def test_a_finished_sweep_keeps_its_table(root: Path) -> None:
    made = tables.listing(read(root, "confirmed"))
    assert Listing.from_dict(json.loads(json.dumps(made.to_dict()))) == made
