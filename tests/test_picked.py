"""What search.pick writes for other servers, read by their own parsers: Triton's and Ray Serve's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving import picked
from serving.package import About, Package
from serving.policy import Plan
from serving.settings import Settings
from tasks.base import Port
from tests.test_serving_http import version

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def schema() -> Any:
    """Ray Serve's own. Not imported with this file: Ray reads once whether clusters want a token, for all tests."""
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema


PLAN = Plan(16, 2.0, 0, 50.0, "p99_ms=50: batches up to 16", {})
IMAGE, LOGITS = Port("input", ("batch", 1, 28, 28)), Port("logits", ("batch", 10), kind="logits")
TRITON = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}


def about(inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> About:
    return About("net", "0" * 64, "onnx", "onnxruntime", inputs, outputs, threads=2)


def read(config: str) -> Any:
    return text_format.Parse(config, model_config_pb2.ModelConfig())


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((IMAGE,), (LOGITS,)),
        ((Port("ids", ("batch", "length"), "int64"), Port("mask", ("batch", "length"), "int64")), (LOGITS,)),
        ((Port("user", ("batch",), "int64"), Port("item", ("batch",), "int64")), (Port("score", ("batch",)),)),
        ((Port("x", ("batch", 3, "height", "width"), "uint8"),), (Port("mask", ("batch", 2, "height", "width")),)),
        ((Port("x", (1, 8), "float16"),), (Port("y", (1, 4), "float16"),)),
    ],
    ids=["image", "text", "two scalars", "mask of any size", "fixed batch"],
)
def test_triton_reads_the_ports_and_the_batching(inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    described = about(inputs, outputs)
    config = read(picked.config(described, PLAN))
    assert (config.name, config.backend) == ("net", "onnxruntime")
    batched = described.batched()
    assert config.max_batch_size == (16 if batched else 0)
    assert config.HasField("dynamic_batching") == batched
    assert not batched or config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.response_cache.enable
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    for found, ports in ((config.input, inputs), (config.output, outputs)):
        assert [each.name for each in found] == [port.name for port in ports]
        for each, port in zip(found, ports, strict=True):
            assert model_config_pb2.DataType.Name(each.data_type) == TRITON[port.dtype]
            wanted = [size if isinstance(size, int) else -1 for size in port.shape[batched:]]
            assert list(each.dims) == (wanted or [1])
            assert each.HasField("reshape") == (wanted == [])  # a number each: without an axis of its own in the file


def test_batches_of_one_are_not_gathered() -> None:
    config = read(picked.config(about((IMAGE,), (LOGITS,)), Plan(1, 0.0, 1, 5.0, "alone is best", {})))
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize("uri", ["sqlite:///mlruns/mlflow.db", "http://record:5000"])
def test_ray_serve_reads_the_manifest_and_its_arguments_are_the_applications(
    uri: str, tmp_path: Path, schema: Any
) -> None:
    made: Package = version(tmp_path, 0, "")
    picked.write(made, tmp_path / "out", uri, "picked")
    (application,) = schema.model_validate(yaml.safe_load((tmp_path / "out" / "serve.yaml").read_text())).applications
    assert application.import_path == "serving.deployment:app"
    settings = Settings.from_dict(application.args)
    assert settings.port != schema(applications=[]).http_options.port  # of Ray Serve's proxy
    if uri.startswith("http"):
        assert (settings.tracking_uri, settings.alias, settings.model) == (uri, "picked", "")
    else:  # a record on this machine's disk is nothing that a cluster reaches
        assert Package.read(Path(settings.model)).about == made.about
    folder = tmp_path / "out" / "repository" / "m"
    assert read((folder / "config.pbtxt").read_text()).name == "m"
    assert (folder / "1" / "model.onnx").read_bytes() == made.content


def test_the_manifest_for_kuberay_holds_the_same_application(schema: Any) -> None:
    said, *_ = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "rayservice.yaml").read_text())
    assert said["kind"] == "RayService"
    (application,) = schema.model_validate(yaml.safe_load(said["spec"]["serveConfigV2"])).applications
    assert application.import_path == "serving.deployment:app"
    settings = Settings.from_dict(application.args)
    assert settings.watch
    assert settings.port != schema(applications=[]).http_options.port
    assert settings.open_to_others  # each node's own address: the secret holds its token
