"""Which point pick takes: bounds are judged where they could be broken, and what is not sure is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.command import UsageError
from search.front.choice import choose, sureness
from search.front.summary import Summary, read
from search.study.constraint import Constraint
from tests import sweeps
from tests.sweeps import record

DROPS = {3: 0.0042, 5: 0.0012}  # trial -> confirmed accuracy drop, each ± 0.0026


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Trials 1 to 8, of which 3 and 5 are confirmed."""
    root = sweeps.store(tmp_path_factory.mktemp("choice"))
    (root / "model.onnx").write_bytes(b"a model file")
    tracking = sweeps.sweep(root, "sure", [record(number) for number in range(1, 9)])
    tracking.log_confirmed("sure-001", [_confirmed(root, number, drop) for number, drop in DROPS.items()])
    return read(root, "sure")


def _confirmed(root: Path, number: int, drop: float) -> dict[str, object]:
    means = record(number).metrics | {"accuracy": 0.992 - drop, "accuracy_drop": drop}
    means |= {"test_accuracy": 0.99 - drop, "test_accuracy_drop": drop + 0.001}
    metrics = {name: (mean, mean - 0.0026, mean + 0.0026) for name, mean in means.items() if not name.endswith("high")}
    return {"number": number, "metrics": metrics, "on_front": True, "chosen": str(root / "model.onnx"), "seeds": 3}


def limits(*texts: str) -> list[Constraint]:
    return [Constraint.parse(text) for text in texts]


def test_a_bound_is_judged_at_the_bad_end_of_the_interval(found: Summary) -> None:
    bound = limits("accuracy_drop<=0.005")
    assert choose(found, bound, by="latency_ms")["number"] == 5
    assert choose(found, bound, by="latency_ms", certain=False)["number"] in (3, 5)
    assert choose(found, limits("accuracy_drop<=0.0043"), certain=False, by="accuracy")["number"] == 5
    with pytest.raises(UsageError, match="no point of the front surely meets it") as error:
        choose(found, limits("accuracy_drop<=0.002"))
    said = str(error.value)
    assert "nearest is trial 5" in said
    assert "Its mean meets it, its 95 % interval does not; certain=no judges the mean" in said
    assert choose(found, limits("accuracy_drop<=0.002"), certain=False)["number"] == 5
    assert choose(found, limits("accuracy>=0.9875"))["number"] == 5


def test_a_trial_that_is_not_confirmed_surely_meets_nothing_and_is_offered(found: Summary) -> None:
    with pytest.raises(UsageError) as error:
        choose(found, limits("accuracy_drop<=0.0011"), certain=False)
    said = str(error.value)
    left_out = found.unconfirmed
    offered = left_out[left_out["accuracy_drop"] <= 0.0011]["number"].tolist()
    assert offered
    assert f"Not confirmed, but met as the search found them: trials {', '.join(map(str, offered))}" in said
    assert "python -m search.run study=sure study.confirm.candidates=null" in said


def test_the_answer_says_how_sure_it_is_and_what_the_test_split_says(found: Summary) -> None:
    bound = limits("accuracy_drop<=0.005")
    sure, test = sureness(found, choose(found, bound, by="latency_ms"), bound)
    assert sure == "accuracy_drop <= 0.005: accuracy drop 0.12 ± 0.26 points, surely met, with the whole 95 % interval"
    assert test == "test accuracy 98.88 ± 0.26 %, test accuracy drop 0.22 ± 0.26 points"
    mean, _ = sureness(found, choose(found, trial="3"), bound)
    assert mean.endswith("0.42 ± 0.26 points, met by the mean; the 95 % interval reaches 0.68 points")
    one, unread = sureness(found, choose(found, trial="1"), bound)
    assert one.endswith("met by a single training, not confirmed")
    assert unread.startswith("the test split has not been read for it")
    assert sureness(found, choose(found, trial="8"), limits("accuracy>=0.9999"))[0].endswith("not met")
