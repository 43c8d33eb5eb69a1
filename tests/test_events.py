# mypy: disable-error-code="import-not-found, import-untyped"
"""TensorBoard's event files: read back by TensorBoard itself; the format alone where it is not installed."""

from __future__ import annotations

import struct
import sys
import types
from pathlib import Path

import pytest

from search.storage.database import address
from search.sweep import driver
from search.sweep.sweep import Sweep
from search.tracking import tensorboard
from tests.linear import LinearTrainer, config
from tests.sweeps import failed, record


@pytest.fixture
def _no_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorBoard looks for to leave TensorFlow alone, whose import takes seconds."""
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))


@pytest.mark.usefixtures("_no_tensorflow")
def test_scalars_curves_and_hparams_are_read_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    one = record(3)
    tensorboard.write(one, tmp_path)
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, round(e.value, 4)) for e in read.Scalars("epoch/loss")] == [(0, 0.2), (1, 0.1)]
    (latency,) = read.Scalars("latency_ms")
    assert latency.value == pytest.approx(one.metrics["latency_ms"])
    assert latency.wall_time == one.end_ms / 1000
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["pruning.sparsity"].number_value == 0.3
    assert hparams["quantization.scheme"].string_value == "qat_int8"
    ended = read.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert HParamsPluginData.FromString(ended).session_end_info.status == 1


@pytest.mark.usefixtures("_no_tensorflow")
def test_the_hparams_page_lists_params_and_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler

    for one in (record(3), record(4), failed(5, "out of memory")):
        tensorboard.write(one, tmp_path / f"{one.number:04d}")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    context = Context(types.SimpleNamespace(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path))))
    page = context.experiment_from_metadata(
        RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), []
    )
    assert {"pruning.sparsity", "quantization.scheme"} <= {info.name for info in page.hparam_infos}
    asked = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10, allowed_statuses=[1, 2])
    asked.col_params.add(hparam="pruning.sparsity")
    groups = Handler(RequestContext(), context, "", asked).run()
    assert groups.total_size == 3


def test_the_driver_writes_one_file_per_trial_on_demand(planted: LinearTrainer, root: Path) -> None:
    asked = config(root).model_copy(update={"tracking": config(root).tracking.model_copy(update={"tensorboard": True})})
    sweep = Sweep.open(asked.study, address(asked.root))
    loaded = "tensorflow" in sys.modules  # by another test of this process
    driver.run(asked, sweep)
    files = sorted((root / "tensorboard" / sweep.name).rglob("events.out.tfevents.*"))
    assert [path.parent.name for path in files] == ["0000", "0001"]
    before = files[0].stat().st_mtime_ns
    assert tensorboard.write(sweep.records()[0], files[0].parent) == files[0]
    assert files[0].stat().st_mtime_ns == before
    length = struct.unpack("<Q", files[0].read_bytes()[:8])[0]
    assert b"brain.Event:2" in files[0].read_bytes()[12 : 12 + length]
    assert loaded or "tensorflow" not in sys.modules


def test_checksums_are_crc32c() -> None:
    # RFC 3720, B.4: 32 bytes of zeroes give 8a9136aa; masked as TFRecord does.
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tensorboard._checksum(bytes(32)) == struct.pack("<I", masked)
