"""The contract of a runtime. In a test of one's own package:

    from pare.testing.runtimes import check_runtime

    def test_contract(tmp_path):
        check_runtime("my_package.my_runtime", tmp_path)

A runtime whose files are neither onnx, pt2 nor tflite also gives `make`, which writes a `Network` in its format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.base
from pare.testing.networks import NETWORKS, Network, write
from runtimes.base import Artifact, ArtifactError, Runtime, Session, format_of
from runtimes.ports import fitted

TOLERANCE = 1e-4


def check_runtime(name: str, folder: Path, make: Callable[[Network, Path], None] = write) -> None:
    """Raise AssertionError, with what is wrong, unless the named runtime keeps the contract of `runtimes.base.Runtime`.

    `name`: an entry point of `pare.runtimes`, `package.module` or `FILE.py`. `folder`: for the files of the test.
    """
    runtime, suffix = runtimes.base.load(name), format_of(name)
    for network in NETWORKS:
        path = folder / f"{network.name}.{suffix}"
        make(network, path)
        artifact = Artifact.of(path)
        for check in CHECKS:
            try:
                check(runtime, artifact, network)
            except AssertionError as problem:
                raise AssertionError(f"{name}, {network.name}, {check.__name__}: {problem}") from None
            except Exception as problem:
                what = f"{type(problem).__name__}: {problem}"
                raise AssertionError(f"{name}, {network.name}, {check.__name__}: raised {what}") from problem


def inputs_for(session: Session, network: Network, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Valid inputs as the file takes them."""
    return fitted(session.inputs, network.example(rows, seed), network.inputs)


def tells_its_version(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """`version()` is a version."""
    version = runtime.version()
    assert isinstance(version, str), f"version() is a {type(version).__name__}, not a text"
    assert version[:1].isdigit(), f"version() is {version!r}; it must begin with a digit"


def tells_its_ports(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """Names, types and free axes of inputs and outputs."""
    session = runtime.load(artifact, threads=1)
    for what, found, wanted in (
        ("inputs", session.inputs, network.inputs),
        ("outputs", session.outputs, network.outputs),
    ):
        names, right = sorted(port.name for port in found), sorted(port.name for port in wanted)
        assert names == right, f"{what} are named {names}; the file has {right}"
        by_name = {port.name: port for port in found}
        for port in wanted:
            told = by_name[port.name]
            assert told.dtype == port.dtype, f"{port.name} is said to be {told.dtype}; it is {port.dtype}"
            assert len(told.shape) == len(port.shape), f"{port.name} has {len(port.shape)} axes, not {told.shape}"
    for port in session.inputs:
        free = isinstance(port.shape[0], str)
        assert free, f"{port.name} {port.shape}: the file leaves the batch open: a free axis is a text"


def gives_the_right_outputs(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """Every output by name, for any number of rows and any length, whatever the inputs' memory looks like."""
    session = runtime.load(artifact, threads=1)
    for seed, rows in enumerate((1, 3, 64, 257, 2)):
        _compare(session, network, rows, seed)
    given = inputs_for(session, network, 4)
    expected = session.run(given)
    for name, changed in {
        "read-only": {key: _read_only(array) for key, array in given.items()},
        "non-contiguous": {key: np.repeat(array, 2, axis=-1)[..., ::2] for key, array in given.items()},
        "in another order": dict(reversed(given.items())),
    }.items():
        found = session.run(changed)
        same = all(np.array_equal(found[key], array) for key, array in expected.items())
        assert same, f"inputs that are {name} give other outputs"


def honours_a_fixed_batch(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """`load(..., batch=5)` runs 5 rows."""
    _compare(runtime.load(artifact, threads=1, batch=5), network, 5, seed=1)


def repeats_itself(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """The same inputs give the same outputs, earlier results are not overwritten, inputs are not changed."""
    session, other = runtime.load(artifact, threads=1), runtime.load(artifact, threads=1)
    given = inputs_for(session, network, 17)
    untouched = {name: array.copy() for name, array in given.items()}
    first = session.run(given)
    kept = {name: array.copy() for name, array in first.items()}
    session.run(inputs_for(session, network, 17, seed=5))
    other.run(inputs_for(other, network, 3, seed=1))
    again = session.run(given)
    for name, array in first.items():
        assert np.array_equal(array, kept[name]), f"{name}: an earlier result was overwritten by a later run"
        assert np.array_equal(array, again[name]), f"{name}: the same inputs gave other values the second time"
    assert all(np.array_equal(given[name], array) for name, array in untouched.items()), "run() changed its inputs"


def binds_a_call(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """`bind` gives a call without arguments or result; the session runs other inputs in between."""
    session = runtime.load(artifact, threads=1)
    call: Callable[[], Any] = session.bind(inputs_for(session, network, 3))
    assert call() is None, "a bound call must return None"
    _compare(session, network, 5, seed=2)
    assert call() is None, "a bound call must return None"
    runtime.load(artifact, threads=1, batch=2).bind(inputs_for(session, network, 2))()


def refuses_wrong_inputs(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """Wrong names, types and shapes are a ValueError that names the input, from `run` and `bind` alike."""
    session = runtime.load(artifact, threads=1)
    right = inputs_for(session, network, 2)
    name = session.inputs[0].name
    array = right[name]
    wrong: dict[str, dict[str, Any]] = {
        "a missing input": {key: value for key, value in right.items() if key != name},
        "an unknown input": {**right, "unknown": array},
        "another type": {**right, name: array.astype(np.float64)},
        "another number of axes": {**right, name: array[0]},
        "a list": {**right, name: array.tolist()},
    }
    if isinstance(session.inputs[0].shape[-1], int):
        wrong["another size"] = {**right, name: array[..., :-1]}
    if len(right) > 1:
        wrong["other numbers of rows"] = {**right, name: np.concatenate([array, array])}
    for what, inputs in wrong.items():
        for way in (session.run, session.bind):
            message = _refusal(lambda way=way, inputs=inputs: way(inputs), ValueError, f"{way.__name__}() with {what}")  # type: ignore[misc]
            mentioned = "unknown" if what == "an unknown input" else name
            assert mentioned in message, f"the message does not name the input {mentioned!r}: {message}"


def refuses_broken_files(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """Noise, an empty and a cut file are an ArtifactError of one line that begins with the path."""
    whole = artifact.path.read_bytes()
    for damage, content in {"noise": b"not a model", "empty": b"", "cut": whole[: len(whole) // 2]}.items():
        broken = artifact.path.with_name(f"{damage}.{artifact.format}")
        broken.write_bytes(content)
        message = _refusal(
            lambda broken=broken: runtime.load(Artifact.of(broken), threads=1),  # type: ignore[misc]
            ArtifactError,
            f"a file that is {damage}",
        )
        assert message.startswith(f"{broken}: "), f"the message must begin with the file's path: {message}"
        assert "\n" not in message, f"the message has several lines: {message}"


def refuses_other_files(runtime: Runtime, artifact: Artifact, network: Network) -> None:
    """A file that is gone, or was changed since it was made, is an ArtifactError: read it with `artifact.read()`."""
    gone = dataclasses.replace(artifact, path=artifact.path.with_name(f"gone.{artifact.format}"))
    changed = artifact.path.with_name(f"changed.{artifact.format}")
    changed.write_bytes(artifact.path.read_bytes() + b"\0")
    for what, other in (("is gone", gone), ("was changed", dataclasses.replace(artifact, path=changed))):
        _refusal(lambda other=other: runtime.load(other, threads=1), ArtifactError, f"a file that {what}")  # type: ignore[misc]


CHECKS: tuple[Callable[[Runtime, Artifact, Network], None], ...] = (
    tells_its_version,
    tells_its_ports,
    gives_the_right_outputs,
    honours_a_fixed_batch,
    repeats_itself,
    binds_a_call,
    refuses_wrong_inputs,
    refuses_broken_files,
    refuses_other_files,
)


def _compare(session: Session, network: Network, rows: int, seed: int) -> None:
    example = network.example(rows, seed)
    found = session.run(fitted(session.inputs, example, network.inputs))
    for name, right in network.reference(example).items():
        assert name in found, f"run() gave {sorted(found)}; {name!r} is missing"
        made = found[name]
        assert isinstance(made, np.ndarray), f"{name} is a {type(made).__name__}, not a NumPy array"
        assert made.dtype == right.dtype, f"{name} is {made.dtype}, not {right.dtype}"
        assert made.shape == right.shape, f"{name}: {rows} rows gave {made.shape}, not {right.shape}"
        worst = float(np.abs(made - right).max())
        assert worst < TOLERANCE, f"{name}: off by {worst:.2g} with {rows} rows"


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _refusal(work: Callable[[], Any], kind: type[Exception], what: str) -> str:
    """The message of the error that must be raised."""
    try:
        work()
    except kind as problem:
        return str(problem)
    except Exception as problem:
        raise AssertionError(f"{what} raised {type(problem).__name__}, not {kind.__name__}: {problem}") from None
    raise AssertionError(f"{what} was not refused; it must raise {kind.__name__}")
