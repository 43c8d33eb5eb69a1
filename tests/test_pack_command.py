"""search.pack and search.unpack: files there and back, clear errors, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from search import pack, unpack
from tests.onnx_graphs import outputs, random_model
from tests.test_packing import lenet


@pytest.mark.parametrize("coder", ["brotli", "range"])
def test_a_model_there_and_back(coder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    data = lenet(0.06)
    file.write_bytes(data)
    assert pack.main([str(file), f"coder={coder}"]) == 0
    packed = (tmp_path / "model.pare").stat().st_size
    assert f"model.pare: {packed:,} bytes; unpacked {len(data):,} bytes" in capsys.readouterr().out
    file.unlink()
    assert unpack.main([str(tmp_path / "model.pare")]) == 0
    assert file.read_bytes() == data
    assert f"model.onnx: {len(data):,} bytes" in capsys.readouterr().out


def test_a_litert_file_keeps_its_ending(tmp_path: Path) -> None:
    file = tmp_path / "net.tflite"
    file.write_bytes(b"\x1c\0\0\0TFL3" + bytes(40))
    assert pack.main([str(file), f"out={tmp_path / 'x.pare'}"]) == 0
    assert unpack.main([str(tmp_path / "x.pare")]) == 0
    assert (tmp_path / "x.tflite").read_bytes() == file.read_bytes()


def test_a_model_is_made_smaller_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    model = random_model(4)
    file.write_bytes(model.SerializeToString())
    assert pack.main([str(file), "shrink=yes"]) == 0
    assert "model.small.onnx" in capsys.readouterr().out
    assert json.loads((tmp_path / "model.json").read_text()) == {"seed": "of a test"}
    small = (tmp_path / "model.small.onnx").read_bytes()
    np.testing.assert_allclose(outputs(small), outputs(model), rtol=1e-4, atol=1e-4)
    assert unpack.main([str(tmp_path / "model.pare"), f"out={tmp_path / 'again.onnx'}"]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == small
    onnx.checker.check_model(onnx.load_from_string(small))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "FILE: exactly one is needed, none given"),
        (["a", "b"], "FILE: exactly one is needed, 2 given"),
        (["nowhere.onnx"], "FILE: nowhere.onnx is no file"),
        (["here", "coder=zip"], "coder: 'zip' is not valid; choose from brotli, range"),
        (["here", "out=here"], "out: here is the file itself; name another one"),
        (["here", "codr=range"], "did you mean coder=?"),
        (["here", "shrink=yes"], "shrink: here is no ONNX model that can be read"),
    ],
)
def test_mistakes_are_said(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").write_bytes(b"not a model")
    assert pack.main(words) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_unpacked_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").write_bytes(b"not a model")
    assert unpack.main(["here"]) == 1
    assert "search.unpack: here: not a packed model" in capsys.readouterr().err
    assert unpack.main(["here", "limit=much"]) == 2
    assert "limit: 'much' must be a number of bytes" in capsys.readouterr().err
    assert pack.main(["here"]) == 0
    Path("here.onnx").write_bytes(b"something else")
    assert unpack.main(["here.pare", "limit=3"]) == 1
    assert "the limit is 3" in capsys.readouterr().err
    assert unpack.main(["here.pare"]) == 1
    assert "here.onnx: is there already and differs" in capsys.readouterr().err
    assert unpack.main(["here.pare", "out=here.onnx"]) == 0
    assert Path("here.onnx").read_bytes() == b"not a model"
