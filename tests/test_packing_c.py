"""The C decoder is another reading of docs/format.md: it gives what the Python one gives, and refuses what it does."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from packing.decode import PackError, unpack
from packing.pack import CODERS, pack
from tests.onnx_graphs import random_model
from tests.test_packing import lenet

SOURCE = Path(__file__).parent.parent / "deploy" / "c"
HEADER = "brotli/decode.h"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C decoder for both coders, with the compiler's checks of memory and of undefined behaviour."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt install gcc")
    found = subprocess.run([compiler, "-E", "-"], input=f"#include <{HEADER}>\n", capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no {HEADER}: apt install libbrotli-dev")
    made = tmp_path_factory.mktemp("c") / "pare_decode"
    flags = ["-std=c99", "-O2", "-g", "-Wall", "-Wextra", "-Wno-sign-compare", "-Werror", "-DPARE_RANGE"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, *checks, "-o", made, SOURCE / "pare_decode.c", "-lbrotlidec"], check=True)
    return made


def run(decoder: Path, data: bytes, folder: Path) -> tuple[bytes | None, str]:
    """(what it unpacks to, None when it refuses; what it says)."""
    (folder / "model.pare").write_bytes(data)
    command = [str(decoder), "model.pare", "model.onnx"]
    environment = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"}  # what it holds, it holds to its end
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert said.returncode in (0, 1), said.stderr
    assert not said.stderr or said.stderr.startswith("pare_decode: "), said.stderr
    return (folder / "model.onnx").read_bytes() if said.returncode == 0 else None, said.stderr


FEW, MANY = range(2), pytest.param(range(2, 60), marks=pytest.mark.cluster)


@pytest.mark.parametrize("seeds", [FEW, MANY])
@pytest.mark.parametrize("coder", CODERS)
def test_it_unpacks_what_python_packs(decoder: Path, coder: str, seeds: range, tmp_path: Path) -> None:
    files = [random_model(seed).SerializeToString() for seed in seeds]
    for file in (*files, lenet(0.06), b"", b"no model " * 20):
        assert run(decoder, pack(file, coder), tmp_path) == (file, "")


@pytest.mark.parametrize("tries", [6, pytest.param(500, marks=pytest.mark.cluster)])
@pytest.mark.parametrize("coder", CODERS)
def test_it_refuses_what_python_refuses(decoder: Path, coder: str, tries: int, tmp_path: Path) -> None:
    file = random_model(6).SerializeToString()
    data = pack(file, coder)
    rng = random.Random(coder)
    for _ in range(tries):
        changed = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
        for _ in range(rng.randint(1, 3)):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        found, said = run(decoder, bytes(changed), tmp_path)
        try:
            assert found == unpack(bytes(changed))
        except PackError:
            assert found is None
            assert said


def test_without_the_range_decoder_it_says_how_to_build_it(decoder: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or "gcc"
    plain = tmp_path / "pare_decode"
    subprocess.run([compiler, "-std=c99", "-o", plain, SOURCE / "pare_decode.c", "-lbrotlidec"], check=True)
    file = lenet(0.06)
    assert run(plain, pack(file), tmp_path)[0] == file
    assert run(plain, pack(file, "range"), tmp_path)[1] == "pare_decode: it is range-coded: build with -DPARE_RANGE\n"


def test_it_is_short() -> None:
    assert len((SOURCE / "pare_decode.c").read_text().splitlines()) <= 300
