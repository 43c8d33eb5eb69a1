"""The cache of folders: complete or absent, whatever happens to its makers and its files."""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import cache

CONTEXT = multiprocessing.get_context("spawn")
plain = st.recursive(st.integers() | st.booleans() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3))
keys = st.dictionaries(st.text(max_size=5), plain, max_size=4)


def make(folder: Path) -> None:
    np.save(folder / "logits.npy", np.arange(12.0))
    (folder / "deep").mkdir()
    (folder / "deep" / "record.json").write_text("{}")


def hidden(folder: Path) -> list[str]:
    """What lies beside the entries, locks left out."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.suffix != ".lock"]


@given(keys, keys)
def test_equal_keys_share_a_folder_and_others_do_not(one: dict, other: dict) -> None:
    same_text = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (cache.entry(Path("r"), "k", one) == cache.entry(Path("r"), "k", other)) == same_text
    assert cache.entry(Path("r"), "k", dict(reversed(one.items()))) == cache.entry(Path("r"), "k", one)


def test_fills_once_and_writes_key_and_sums(tmp_path: Path) -> None:
    folder = cache.entry(tmp_path, "dense", {"seed": 1})
    assert not cache.get(folder)
    assert cache.fill(folder, make, {"seed": 1})
    assert cache.get(folder)
    assert not cache.fill(folder, lambda into: pytest.fail("made twice"), {"seed": 1})
    assert json.loads((folder / cache.KEY).read_text()) == {"seed": 1}
    assert set(json.loads((folder / cache.SUMS).read_text())) == {"logits.npy", "deep/record.json", cache.KEY}
    assert hidden(folder.parent) == []


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_changed_byte_or_missing_file_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("c") / "e"
    cache.fill(folder, make, {"a": 1})
    name = data.draw(st.sampled_from(["logits.npy", "deep/record.json", cache.KEY, cache.SUMS]))
    content = bytearray((folder / name).read_bytes())
    harm = data.draw(st.sampled_from(["change", "truncate", "append", "remove"]))
    if harm == "remove":
        (folder / name).unlink()
    elif harm == "append" and name != cache.SUMS:  # white space after the sums harms nobody
        (folder / name).write_bytes(content + b"x")
    elif harm == "truncate":
        (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    else:
        content[data.draw(st.integers(0, len(content) - 2))] ^= data.draw(st.integers(1, 255))
        (folder / name).write_bytes(content)
    assert not cache.get(folder)
    assert not folder.exists()
    assert cache.fill(folder, make, {"a": 1})
    assert cache.get(folder)


def test_the_warning_names_the_broken_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "e"
    cache.fill(folder, make)
    (folder / "logits.npy").write_bytes(b"gone wrong")
    with caplog.at_level(logging.WARNING):
        assert not cache.get(folder)
    assert "logits.npy" in caplog.text
    assert str(folder) in caplog.text


def test_an_intact_entry_is_only_read(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    cache.fill(folder, make)
    (tmp_path / ".e.lock").unlink()
    assert cache.get(folder)
    assert not cache.fill(folder, make)
    assert not (tmp_path / ".e.lock").exists()  # neither took the lock: a read-only cache will do


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def breaks(folder: Path) -> None:
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(tmp_path / "e", breaks)
    assert not (tmp_path / "e").exists()
    assert hidden(tmp_path) == []


def writes_to_full_device(folder: Path) -> None:
    make(folder)
    with open("/dev/full", "wb") as device:
        device.write(b"0" * 100_000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_clearly_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(cache.CacheError, match=r"the disk is full.*Free some space") as caught:
        cache.fill(tmp_path / "e", writes_to_full_device)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert not (tmp_path / "e").exists()
    assert hidden(tmp_path) == []


ON_TMPFS = """
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from tasks import cache
root = Path(sys.argv[1])
for write in (lambda f: np.save(f / "a.npy", np.zeros(10**6)), lambda f: save_file({"a": np.zeros(10**6)}, f / "a.st")):
    try:
        cache.fill(root / "e", write)
    except cache.CacheError as error:
        assert "the disk is full" in str(error)
    else:
        sys.exit("written to a full disk")
    assert [path.name for path in root.iterdir()] == [".e.lock"]
"""


def test_a_full_disk_that_numpy_and_safetensors_report_in_words(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        subprocess.run([sys.executable, "-c", ON_TMPFS, str(tmp_path)], check=True, cwd=Path(__file__).parents[1])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def fills_for_ever(folder: str) -> None:
    def never_ends(into: Path) -> None:
        make(into)
        (Path(folder).parent / "half-way").touch()
        time.sleep(600)

    cache.fill(Path(folder), never_ends)


def test_a_filler_killed_half_way_blocks_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    process = CONTEXT.Process(target=fills_for_ever, args=(str(folder),))
    process.start()
    while not (tmp_path / "half-way").exists():
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not cache.get(folder)
    assert cache.fill(folder, make)
    assert cache.get(folder)
    assert hidden(tmp_path) == []


def fills_slowly(folder: str, told: "multiprocessing.Queue[tuple[bool, bool]]") -> None:
    waited = []

    def slow(into: Path) -> None:
        with (Path(folder).parent / "makers").open("a") as makers:
            makers.write("one\n")
        time.sleep(0.5)
        make(into)

    made = cache.fill(Path(folder), slow, progress=lambda stage, fraction: waited.append(stage))
    told.put((made, any("waiting for another process" in stage for stage in waited)))


def test_two_fillers_make_it_once(tmp_path: Path) -> None:
    told = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=fills_slowly, args=(str(tmp_path / "e"), told)) for _ in range(2)]
    for process in processes:
        process.start()
    said = [told.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert (tmp_path / "makers").read_text() == "one\n"
    assert sorted(made for made, _ in said) == [False, True]
    assert cache.get(tmp_path / "e")
    assert not any(made and waited for made, waited in said)


def test_a_folder_removed_by_hand_is_made_again(tmp_path: Path) -> None:
    cache.fill(tmp_path / "e", make)
    shutil.rmtree(tmp_path / "e")
    assert cache.fill(tmp_path / "e", make)
