"""The server on a real socket, without Ray: existing clients, bad and slow ones, versions, the cache, compression."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import io
import json
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
import zstandard
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from serving import listen, metrics, package
from serving import model as models
from serving import server as servers
from serving.access_log import AccessLog
from serving.listen import Listener, bound
from serving.package import Package, PackageError
from serving.result_cache import ResultCache
from serving.server import Server
from serving.service import Service
from tests.linear import linear
from tests.loopback import free_port

DIGITS = {
    "kind": "image",
    "options": {"mode": "L", "resize": [28, 28], "mean": [0.1307], "std": [0.3081]},
    "answer": "label",
    "classes": [f"digit {i}" for i in range(10)],
}
LIMIT = 1024 * 1024
ROOT = Path(__file__).parent.parent


class Served:
    """A service that answers on a port of its own."""

    def __init__(self, folder: Path, token: str = "", log: Path | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.service = Service(ResultCache(1024 * 1024, 64 * 1024))
        self.listener = Listener()
        self.server = Server(self.service, "m", LIMIT, token, AccessLog(log) if log else None)
        self.listener.serve(self.server, bound("127.0.0.1", self.port))

    def use(self, made: Package) -> Package:
        """Serve this version from now on."""
        model = models.load(made, self.folder / made.about.key, 50.0)
        self.listener.call(self.service.prepare(model))
        self.listener.call(self._switch(made.about.key))
        return made

    async def _switch(self, key: str) -> None:
        self.service.switch(key)

    def close(self) -> None:
        """End the server and the model."""
        self.listener.close()
        if self.service.current is not None:
            self.service.current.close()

    def ask(
        self, path: str, body: bytes | None = None, method: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, answer)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def infer(self, x: np.ndarray, **more: Any) -> np.ndarray:
        """The logits."""
        status, _, answer = self.ask("/v2/models/m/infer", request(x, **more))
        assert status == 200, answer
        output = json.loads(answer)["outputs"][0]
        return np.array(output["data"], np.float32).reshape(output["shape"])


def request(x: np.ndarray, **more: Any) -> bytes:
    tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.reshape(-1).tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


def version(folder: Path, seed: int, label: str) -> Package:
    """Weights of that seed, on grey images of 28 x 28."""
    file = folder / f"weights{seed}.onnx"
    onnx.save(linear(np.random.default_rng(seed).standard_normal((784, 10)).astype(np.float32), False), file)
    return package.make(file, "m", "onnxruntime", serving=DIGITS).named(label)


def inputs(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 1, 28, 28)).astype(np.float32)


def expected(made: Package, x: np.ndarray, folder: Path) -> np.ndarray:
    from runtimes import onnxruntime

    return onnxruntime.load(made.write(folder / "again"), 1).run({"input": x})["logits"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    made = Served(folder, log=folder / "access.log")
    made.use(version(folder, 0, "1"))
    yield made
    made.close()


def test_tritonclient_reads_health_and_metadata_and_infers(served: Served, tmp_path: Path) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{served.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    about = client.get_model_metadata("m")
    assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert about["versions"] == ["1"]
    x = inputs(5)
    wanted = expected(version(served.folder, 0, "1"), x, tmp_path)
    for binary_in in (True, False):
        for binary_out in (True, False):
            given = triton.InferInput("input", list(x.shape), "FP32")
            given.set_data_from_numpy(x, binary_data=binary_in)
            asked = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
            found = client.infer("m", [given], outputs=asked, request_id="r7")
            np.testing.assert_allclose(found.as_numpy("logits"), wanted, rtol=1e-5)
            assert found.get_response()["id"] == "r7"
            assert found.get_response()["model_version"] == "1"
    for algorithm in ("gzip", "deflate"):
        found = client.infer(
            "m", [given], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
        )
        np.testing.assert_allclose(found.as_numpy("logits"), wanted, rtol=1e-5)
    best = client.infer("m", [given], outputs=[triton.InferRequestedOutput("logits", class_count=2)])
    texts = best.as_numpy("logits")
    assert texts.shape == (5, 2)
    assert texts[0, 0].decode().endswith(f":{wanted[0].argmax()}:digit {wanted[0].argmax()}")
    wrong = triton.InferInput("input", [1, 1, 27, 28], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 1, 27, 28), np.float32))
    with pytest.raises(triton.InferenceServerException, match="input: shape"):
        client.infer("m", [wrong])


def picture() -> bytes:
    kept = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 56), dtype=np.uint8)).save(kept, "PNG")
    return kept.getvalue()


def test_people_send_a_picture_and_get_a_label(served: Served) -> None:
    status, headers, answer = served.ask("/predict", picture(), content_type="image/png")
    assert status == 200
    said = json.loads(answer)
    assert said["label"].startswith("digit ")
    assert len(said["top"]) == 5
    assert (said["version"], headers["pare-version"]) == ("1", "1")
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    form += picture() + b"\r\n--x--\r\n"
    assert json.loads(served.ask("/predict", form, content_type="multipart/form-data; boundary=x")[2]) == said
    assert json.loads(served.ask("/predict?outputs=labels", picture())[2]).keys() == {"model", "version", "label"}
    status, headers, answer = served.ask("/")
    assert headers["content-type"].startswith("text/html")
    assert b'<input id="given" type="file"' in answer


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("/v2/models/m/infer", b"", {}, 400, "it is not JSON"),
        ("/v2/models/m/infer", b"\x00" * 1000, {}, 400, "it is not JSON"),
        ("/v2/models/m/infer", b"{}", {}, 400, "no list"),
        ("/v2/models/m/infer", request(inputs(1)[:, :, 1:]), {}, 400, "send [batch, 1, 28, 28]"),
        ("/v2/models/m/infer", request(inputs(1), parameters={"outputs": "top9"}), {}, 400, "choose from top5"),
        ("/v2/models/m/infer", b"x", {"Content_Encoding": "br"}, 415, "send gzip, deflate or zstd"),
        ("/v2/models/m/infer", b"x", {"Content_Encoding": "gzip"}, 400, "the body is no gzip"),
        ("/v2/models/m/infer", gzip.compress(b"0" * 10**7, mtime=0), {"Content_Encoding": "gzip"}, 413, "larger than"),
        ("/v2/models/m/infer", request(inputs(1)), {"Pare_Version": "2"}, 409, "'2' is not served now"),
        ("/v2/models/m/versions/7/infer", request(inputs(1)), {}, 409, "this is version 1"),
        ("/v2/models/n/infer", request(inputs(1)), {}, 404, "the model served here is m"),
        ("/v2/models/m/infer", None, {}, 405, "use POST"),
        ("/nothing", None, {}, 404, "there is nothing"),
        ("/predict", None, {}, 405, "use POST"),
        ("/predict", b"", {}, 400, "the body is empty"),
        ("/predict", b"noise", {}, 400, "not a known image format"),
        ("/predict", b"{}", {"Content_Type": "application/json"}, 400, "this model takes images"),
        ("/predict", b"--y", {"Content_Type": "multipart/form-data; boundary=x"}, 400, "the form has no part"),
        ("/admin/update", b"", {}, 404, "there is nothing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_request_gets_a_4xx_of_one_sentence(
    served: Served, path: str, body: bytes | None, headers: dict[str, str], status: int, says: str
) -> None:
    found, _, answer = served.ask(path, body, **headers)
    assert (found, says in json.loads(answer)["error"]) == (status, True), answer
    assert len(answer) < 500
    assert served.ask("/healthz")[0] == 200


def test_50_mb_of_noise_are_refused_unread_and_chunks_are_counted(served: Served) -> None:
    noise = np.random.default_rng(0).bytes(50_000_000)
    status, _, answer = served.ask("/predict", noise)
    assert status == 413
    assert b"50,000,000 bytes are too many" in answer
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection:
        chunks = (noise[i : i + 100_000] for i in range(0, 3_000_000, 100_000))
        connection.request("POST", "/predict", chunks, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        answered = connection.getresponse()
        assert answered.status == 413
        assert b"larger than 1,048,576" in answered.read()
    assert served.ask("/healthz")[0] == 200


def test_what_is_no_http_and_who_leaves_early_disturb_nobody(served: Served) -> None:
    for sent in (b"\xff\x00 noise\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc", b""):
        with closing(socket.create_connection(("127.0.0.1", served.port))) as raw:
            raw.sendall(sent)
    assert served.infer(inputs(1)).shape == (1, 10)


def test_a_slow_client_is_told_and_sent_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "SLOW_S", 0.5)
    for start in (b"", b"POST /v2/mod", b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc"):
        with closing(socket.create_connection(("127.0.0.1", served.port), timeout=20)) as raw:
            raw.sendall(start)
            assert b"408" in raw.recv(1000)
            assert raw.recv(1000) == b""
    assert served.infer(inputs(1)).shape == (1, 10)


def test_bodies_that_trickle_in_are_bounded_together(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "READING_BYTES", 300_000)
    head = b"POST /predict HTTP/1.1\r\nConnection: close\r\nContent-Length: 250000\r\n\r\n"
    with (
        closing(socket.create_connection(("127.0.0.1", served.port), timeout=20)) as first,
        closing(socket.create_connection(("127.0.0.1", served.port), timeout=20)) as second,
    ):
        first.sendall(head + b"x" * 200_000)
        while served.server._reading < 200_000:
            time.sleep(0.01)
        second.sendall(head + b"x" * 200_000)
        assert second.recv(30).startswith(b"HTTP/1.1 503")
        first.sendall(b"x" * 50_000)
        assert first.recv(30).startswith(b"HTTP/1.1 400")  # all of it was read, and is no image
    assert served.server._reading == 0


def test_a_thousand_connections_one_after_the_other(served: Served) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(1000):
        with closing(socket.create_connection(("127.0.0.1", served.port))) as raw:
            raw.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert raw.recv(20).startswith(b"HTTP/1.1 200")
    time.sleep(0.2)
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 50


def test_repeated_inputs_are_answered_from_the_cache_and_never_by_an_earlier_version(tmp_path: Path) -> None:
    made = Served(tmp_path)
    x = inputs(2)
    first = made.use(version(tmp_path, 1, "1"))
    np.testing.assert_allclose(made.infer(x), expected(first, x, tmp_path), rtol=1e-5)
    np.testing.assert_allclose(made.infer(x), expected(first, x, tmp_path), rtol=1e-5)
    assert (made.service.cache.hits, made.service.cache.misses) == (1, 1)
    second = made.use(version(tmp_path, 2, "2"))
    np.testing.assert_allclose(made.infer(x), expected(second, x, tmp_path), rtol=1e-5)
    made.use(first)
    np.testing.assert_allclose(made.infer(x), expected(first, x, tmp_path), rtol=1e-5)
    large = inputs(100)  # 314 KB: above what is kept
    made.infer(large[:25])
    kept = len(made.service.cache)
    made.infer(large[:25])
    assert len(made.service.cache) == kept
    made.close()


def test_every_answer_is_that_of_the_version_it_names_while_versions_change(tmp_path: Path) -> None:
    made = Served(tmp_path)
    packages = {label: version(tmp_path, int(label), label) for label in ("1", "2")}
    x = inputs(3)
    wanted = {label: expected(each, x, tmp_path) for label, each in packages.items()}
    made.use(packages["1"])
    seen: list[str] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        body = request(x)
        while len(set(seen)) < 2 or len(seen) < 300:
            writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            answer = json.loads(await reader.readexactly(int(fields[b"content-length"])))
            assert head.startswith(b"HTTP/1.1 200")
            assert fields[b"pare-version"].decode() == answer["model_version"]
            found = np.array(answer["outputs"][0]["data"]).reshape(3, 10)
            np.testing.assert_allclose(found, wanted[answer["model_version"]], rtol=1e-4, atol=1e-5)
            seen.append(answer["model_version"])
        writer.close()

    async def main() -> None:
        clients = [asyncio.create_task(client()) for _ in range(4)]
        while len(seen) < 100:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(made.use, packages["2"])
        await asyncio.gather(*clients)

    asyncio.run(main())
    made.close()


def test_a_mask_is_smaller_compressed_as_labels_or_as_a_picture(tmp_path: Path) -> None:
    made = Served(tmp_path)
    nodes = [helper.make_node("Conv", ["image", "kernel"], ["scores"], pads=[1, 1, 1, 1])]
    kernel = np.random.default_rng(0).standard_normal((21, 3, 3, 3)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 64, 64])
        for name, channels in (("image", 3), ("scores", 21))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "kernel")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "seg.onnx")
    from tasks.base import Port

    ports: tuple[list[Port], list[Port]] = ([], [Port("scores", ("batch", 21, 64, 64), kind="logits")])
    serving = {"kind": "image", "options": {"mode": "RGB", "resize": [64, 64]}, "answer": "mask"}
    made.use(package.make(tmp_path / "seg.onnx", "m", "onnxruntime", serving=serving, ports=ports))
    x = np.zeros((1, 3, 64, 64), np.float32)
    tensor = {"name": "image", "shape": [1, 3, 64, 64], "datatype": "FP32", "data": x.reshape(-1).tolist()}
    plain = made.ask("/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode())[2]
    labels = json.dumps({"inputs": [tensor], "parameters": {"outputs": "labels"}}).encode()
    status, headers, packed = made.ask("/v2/models/m/infer", labels, accept_encoding="zstd")
    assert (status, headers["content-encoding"]) == (200, "zstd")
    said = json.loads(zstandard.ZstdDecompressor().decompress(packed))["outputs"][0]
    assert (said["name"], said["datatype"], said["shape"]) == ("scores_label", "UINT8", [1, 64, 64])
    assert len(packed) * 20 < len(plain)
    answer = json.loads(made.ask("/predict", picture())[2])
    status, headers, image = made.ask("/predict", picture(), accept="image/png")
    assert headers["content-type"] == "image/png"
    assert np.asarray(Image.open(io.BytesIO(image))).tolist() == answer["mask"]
    made.close()


def sums(folder: Path, inputs: dict[str, tuple[int, list[int | str]]]) -> Path:
    """A file that adds up each of its inputs, by name (element type, shape), one sum a row: float [batch, inputs]."""
    nodes, ends = [], []
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    for name, (kind, shape) in inputs.items():
        nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{name}_float", "axes"], [f"{name}_sum"], keepdims=1))
        ends.append(helper.make_tensor_value_info(name, kind, shape))
    nodes.append(helper.make_node("Concat", [f"{name}_sum" for name in inputs], ["y"], axis=1))
    gives = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", len(inputs)])]
    graph = helper.make_graph(nodes, "net", ends, gives, [axes])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "sums.onnx"
    )
    return folder / "sums.onnx"


def words() -> bytes:
    """A tokenizer of three words: a, b and c are 1, 2 and 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return bytes(made.to_str(), "utf-8")


def test_people_send_a_text_a_row_or_several_inputs(tmp_path: Path) -> None:
    made = Served(tmp_path)
    text: dict[str, tuple[int, list[int | str]]] = {
        name: (TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask")
    }
    serving: dict[str, Any] = {"kind": "text", "options": {"length": 64}}
    made.use(package.make(sums(tmp_path, text), "m", "onnxruntime", 1, serving, {"tokenizer.json": words()}))
    for body, kind in (
        (b"c a b", "text/plain"),
        (b"text=c+a+b", "application/x-www-form-urlencoded"),
        (b'{"text": "c a b"}', "application/json"),
    ):
        status, _, answer = made.ask("/predict", body, content_type=kind)
        assert (status, json.loads(answer)["y"]) == (200, [6.0, 3.0]), answer
    assert b'<textarea id="given" rows="5" required></textarea>' in made.ask("/")[2]

    columns = ["age", {"name": "pay", "mean": 10, "std": 5}, {"name": "job", "categories": ["x", "y"], "input": "id"}]
    row: dict[str, tuple[int, list[int | str]]] = {
        "x": (TensorProto.FLOAT, ["batch", 2]),
        "id": (TensorProto.INT64, ["batch", 1]),
    }
    serving = {"kind": "row", "options": {"columns": columns}}
    made.use(package.make(sums(tmp_path, row), "m", "onnxruntime", 1, serving))
    status, _, answer = made.ask("/predict", b'{"age": 3, "pay": 20, "job": "y"}')
    assert (status, json.loads(answer)["y"]) == (200, [5.0, 1.0]), answer
    status, _, answer = made.ask("/predict", b'{"age": 3, "pay": 20, "job": "z"}')
    assert (status, b"'z' is not known; choose from x, y" in answer) == (400, True)
    assert b"&quot;job&quot;: 0" in made.ask("/")[2]

    made.use(package.make(sums(tmp_path, row), "m", "onnxruntime").named("2"))
    several = {"inputs": {"x": [[1, 2], [3, 4]], "id": [[7], [8]]}}
    status, _, answer = made.ask("/predict", json.dumps(several).encode(), content_type="application/json")
    assert (status, json.loads(answer)["answers"]) == (200, [{"y": [3.0, 7.0]}, {"y": [7.0, 8.0]}]), answer
    made.close()


def test_before_a_version_is_there_it_says_so_and_a_damaged_file_ends_it(tmp_path: Path) -> None:
    made = Served(tmp_path)
    status, headers, answer = made.ask("/v2/models/m/infer", request(inputs(1)))
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"is being loaded" in answer
    assert made.ask("/v2/health/live")[0] == 200
    assert made.ask("/v2/health/ready")[0] == made.ask("/healthz")[0] == 503
    package_ = made.use(version(tmp_path, 0, "1"))
    assert made.ask("/healthz")[0] == 200
    made.service.verify()
    (tmp_path / package_.about.key / "model.onnx").write_bytes(b"noise")
    with pytest.raises(PackageError, match="sha256"):
        made.service.verify()
    assert made.ask("/v2/models/m/infer", request(inputs(1)))[0] == 503
    made.close()


def test_a_token_is_asked_for_where_there_is_one(tmp_path: Path) -> None:
    made = Served(tmp_path, token="secret")
    made.use(version(tmp_path, 0, "1"))
    for path, body in (("/v2/models/m/infer", request(inputs(1))), ("/predict", picture()), ("/metrics", None)):
        assert made.ask(path, body)[0] == 401
        assert made.ask(path, body, authorization="Bearer wrong")[0] == 401
        assert made.ask(path, body, authorization="Bearer secret")[0] == 200
    assert made.ask("/healthz")[0] == 200
    assert b'<input id="token"' in made.ask("/")[2]
    made.close()


def test_metrics_and_access_log_count_what_happened(served: Served) -> None:
    served.infer(inputs(2, seed=9))
    served.infer(inputs(2, seed=9))
    _, headers, answer = served.ask("/metrics")
    assert headers["content-type"] == metrics.KIND
    from prometheus_client.parser import text_string_to_metric_families

    families = {each.name: each for each in text_string_to_metric_families(answer.decode())}
    assert families["pare_model_info"].samples[0].labels["version"] == "1"
    values = {sample.name: sample.value for each in families.values() for sample in each.samples}
    assert values["pare_cache_hits_total"] >= 1
    assert values["pare_request_duration_seconds_count"] >= 2
    total = sum(s.value for s in families["pare_requests"].samples if s.labels["status"] == "200")
    assert total >= values["pare_request_duration_seconds_count"]
    served.server._log.flush()  # type: ignore[union-attr]
    lines = (served.folder / "access.log").read_text().splitlines()
    assert any('"POST /v2/models/m/infer" 200' in line and " 1 hit " in line for line in lines)
    assert any('"POST /v2/models/m/infer" 200' in line and " 1 2 " in line for line in lines)


CURL = [line for line in (ROOT / "docs" / "production.md").read_text().splitlines() if line.startswith("curl -s ")]


@pytest.mark.parametrize("line", CURL)
def test_the_curl_commands_of_the_page_are_answered(line: str, served: Served, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (tmp_path / "picture.png").write_bytes(picture())
    (tmp_path / "request.json").write_bytes(request(inputs(30)))
    written = line.replace(":8000/", f":{served.port}/").replace("/models/mnist_prune", "/models/m")
    written = written.replace("mlruns/picked/mnist_prune/", "")
    done = subprocess.run(
        [*shlex.split(written), "-w", "\\n%{http_code}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    answer, _, status = done.stdout.rpartition("\n")
    assert status == "200", done.stdout
    assert "pare_requests_total" in answer if "/metrics" in line else json.loads(answer)


def test_the_page_names_a_command_for_each_kind_of_request() -> None:
    assert len(CURL) >= 9
