"""`python -m search.run` as people call it: bad input, help, several studies at once, a finished study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from search import run
from search.ending import clear_errors

ROOT = Path(__file__).parent.parent


def ended(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line, run in this process."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["search.run", *argv])
    code: int | str | None = 0
    try:
        run.main()
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    return int(code or 0), said.out, said.err


USAGE = [
    (["study=mnist_prun"], "study: 'mnist_prun' does not exist; choose from"),
    (["storage=mysql"], "storage: 'mysql' does not exist; choose from postgres, sqlite"),
    (["storage.patience=-1"], "storage.patience: -1 is not valid; it should be greater than or equal to 0"),
    (["executor=lokal"], "executor: 'lokal' does not exist; choose from inline, local"),
    (["--multirun", "study=smoke,mnist_prun"], "study: 'mnist_prun' does not exist"),
    (["study.objectives=[accuracy,latncy]"], "study.objectives[1]: 'latncy' is not a metric (did you mean latency"),
    (["study.budgett.trials=3"], "study.budgett: no such field (did you mean budget?)"),
    (["trials=3"], "trials: no such field; choose from study, executor, storage, tracking, root"),
    (["study.runtime=onnxruntim"], "study.runtime: 'onnxruntim' is not a runtime; choose from onnxruntime"),
    (["study.recipe.pruning.sparsity=1.2"], "study.recipe.pruning.sparsity: 1.2 must lie between 0 and 0.99"),
    (["study.recipe.quantization.scheme.choices=[]"], "choices: [] must be a list with at least one value"),
    (["study.recipe.pruning.sparsity.low=0.95"], "low 0.95 must be below high 0.9"),
    (["study.recipe.model=lenet6"], "the pytorch trainer has no 'lenet6'; choose from lenet5"),
    (["study.constraints=[drop]"], "must read like 'accuracy_drop <= 0.02'"),
    (["study.constraints=[accuracy_drop<0.1]"], "cannot be read; write KEY=VALUE, quoting text as in 'study.constr"),
    (["study.references.x={pruning:{granularity:block}}"], "'block' is outside the study's choices"),
    (["study.budget.trials=0"], "study.budget.trials: 0 is not valid; it should be greater than or equal to 1"),
    (["study.sampler.name=cmaes"], "study.sampler.name: 'cmaes' is not valid; it should be 'auto', 'ehvi', "),
    (["executor.workers=many"], "executor.workers: 'many' is not valid"),
    (["device=gpu"], "device: 'gpu' is not valid; it should be 'auto', 'cpu' or 'cuda'"),
    (["fresh"], "fresh: cannot be read; write KEY=VALUE"),
    (["fresh=true", "sweep=smoke-001"], "fresh: true starts a new sweep, sweep=smoke-001 resumes one; write one"),
    (["study.seed=[1"], "study.seed=[1: cannot be read"),
    (["--config-dir=/nowhere/at/all"], "--config-dir: /nowhere/at/all is not a folder"),
]


@pytest.mark.parametrize(("argv", "says"), USAGE, ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "")
def test_a_usage_error_is_one_clear_message_and_exit_code_2(
    argv: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = [] if any(a.startswith("study=") for a in argv) else ["study=smoke"]
    code, out, err = ended([*study, f"root={tmp_path}/m", *argv], monkeypatch, capsys)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert says in errors[0]
    assert "Traceback" not in err
    assert not (tmp_path / "m").exists()


MALFORMED = {
    "unclosed": "name: [a\nobjectives: x\n",
    "tab": "name: x\n\tbudget: 1\n",
    "not a mapping": "- a\n- b\n",
    "misspelt inside": (ROOT / "experiments/study/smoke.yaml").read_text().replace("budget:", "bugdet:"),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_broken_study_file_is_named(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.yaml").write_text(text)
    code, _, err = ended(["--config-dir", str(tmp_path), "study=mine", f"root={tmp_path}/m"], monkeypatch, capsys)
    assert code == 2
    assert "Traceback" not in err
    assert "error: " in err


def test_faults_of_the_machine_are_one_clear_message_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = ended(["study=smoke", f"root={tmp_path}/file"], monkeypatch, capsys)
    assert code == 1
    assert "/file: File exists; make it usable, or name another with root=FOLDER" in err
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "optuna.db").write_bytes(b"not a database" * 500)
    code, _, err = ended(["study=smoke", f"root={tmp_path}/m"], monkeypatch, capsys)
    assert code == 1
    assert "optuna.db cannot be opened (" in err
    assert "Traceback" not in err


def test_help_lists_the_studies_and_what_can_be_overridden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ended(["--help"], monkeypatch, capsys)
    assert code == 0
    for word in (
        "mnist_prune_both  LeNet-5 by both trainers",
        "executor.name=local|ray|inline",
        "storage.name=sqlite|postgres",
        "study.budget.trials=60",
        "trial_timeout",
    ):
        assert word in out


def test_a_bare_command_shows_the_studies_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ended([], monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "mnist_prune       LeNet-5" in out
    assert "python -m search.run --help" in out
    assert list(tmp_path.iterdir()) == []


def test_settings_without_a_study_are_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for argv in (["fresh=true"], ["--cfg", "job"], ["--multirun", "fresh=true,false"]):
        code, out, err = ended([*argv, f"root={tmp_path}/m"], monkeypatch, capsys)
        assert (code, out) == (2, "")
        assert err.startswith("error: study: missing; write study=NAME, one of ")
        assert "mnist_prune, " in err


def test_nothing_is_written_outside_root(root: Path, tmp_path: Path) -> None:
    caller = tmp_path / "caller"
    caller.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "search.run", "study=smoke", "study.objectives=[x]", f"root={root}"],
        cwd=caller,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert list(caller.iterdir()) == []


def wrapped(kind: type[Exception]) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise kind("the connection was lost in the middle of a statement")  # noqa: B904 — as libraries do


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_an_interruption_that_a_library_wrapped_is_still_one(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended_with, clear_errors():
        wrapped(kind)
    assert ended_with.value.code == 130
    assert "Finished trials are kept" in capsys.readouterr().err
