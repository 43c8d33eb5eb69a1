"""The Open Inference Protocol in bytes: read, answered, every mistake said in one sentence; smaller answers."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from serving import protocol, reduce
from serving.errors import RequestError
from serving.protocol import Ends, parse
from serving.result_cache import ResultCache
from tasks.base import Port

ENDS = Ends.of(
    [Port("ids", ("batch", "length"), "int64"), Port("x", ("batch", 2))],
    [Port("logits", ("batch", 3), kind="logits"), Port("embedding", ("batch", 4))],
)
IDS = {"name": "ids", "shape": [2, 3], "datatype": "INT64", "data": [[1, 2, 3], [4, 5, 6]]}
X = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [0.5, 1, 2, 3]}
OUT = {"logits": np.array([[1, 3, 2], [9, 7, 8]], np.float32), "embedding": np.ones((2, 4), np.float32)}


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def test_json_tensors_flat_and_nested_become_arrays() -> None:
    request = parse(body(IDS, X, id="a7"), None, ENDS)
    assert request.inputs["ids"].dtype == np.int64
    assert request.inputs["ids"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert request.inputs["x"].tolist() == [[0.5, 1], [2, 3]]
    answer = orjson.loads(protocol.encode(request, OUT, "m", "3")[0])
    assert answer["id"] == "a7"
    assert (answer["model_name"], answer["model_version"]) == ("m", "3")
    assert answer["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [1, 3, 2, 9, 7, 8]}


def test_binary_tensors_lie_behind_the_header_in_order() -> None:
    ids, x = np.arange(6).reshape(2, 3), np.full((2, 2), 0.25, np.float32)
    tensors = [
        {"name": n, "shape": list(v.shape), "datatype": t, "parameters": {"binary_data_size": v.nbytes}}
        for n, t, v in (("x", "FP32", x), ("ids", "INT64", ids))
    ]
    header = body(*tensors, parameters={"binary_data_output": True})
    request = parse(header + x.tobytes() + ids.tobytes(), str(len(header)), ENDS)
    np.testing.assert_array_equal(request.inputs["ids"], ids)
    np.testing.assert_array_equal(request.inputs["x"], x)
    made, length = protocol.encode(request, OUT, "m", "1")
    assert length is not None
    said = orjson.loads(made[:length])
    assert [each["parameters"]["binary_data_size"] for each in said["outputs"]] == [24, 32]
    np.testing.assert_array_equal(np.frombuffer(made[length : length + 24], np.float32), OUT["logits"].reshape(-1))


def test_only_the_asked_outputs_and_the_best_classes_as_text() -> None:
    asked = [{"name": "logits", "parameters": {"classification": 2}}]
    request = parse(body(IDS, X, outputs=asked), None, ENDS)
    (output,) = orjson.loads(protocol.encode(request, OUT, "m", "1", ["cat", "dog", "owl"])[0])["outputs"]
    assert output["shape"] == [2, 2]
    assert output["data"] == ["3.000000:1:dog", "2.000000:2:owl", "9.000000:0:cat", "8.000000:2:owl"]


@pytest.mark.parametrize(
    ("sent", "length", "says"),
    [
        (b"", None, "it is not JSON"),
        (b"\xff\xfe", None, "it is not JSON"),
        (b"[" * 100_000, None, "it is not JSON"),
        (b"{}", None, 'no list "inputs"'),
        (b"[1]", None, 'no list "inputs"'),
        (body(7), None, "must hold JSON objects"),
        (body(IDS), None, "'x' is missing; the model takes ids, x"),
        (body(IDS, IDS, X), None, "given twice"),
        (body({**IDS, "name": "idz"}, X), None, "'idz' is no input"),
        (body({**IDS, "datatype": "FP32"}, X), None, "ids: datatype 'FP32' is not valid; send INT64"),
        (body({**IDS, "shape": [2]}, X), None, "ids: shape [2] is not valid; send [batch, length]"),
        (body({**IDS, "shape": [0, 3], "data": []}, X), None, "shape [0, 3] is not valid"),
        (body({**IDS, "shape": [2, 2]}, X), None, "6 values do not fill the shape [2, 2]"),
        (body({**IDS, "shape": [2, -3]}, X), None, "shape is missing or not a list of whole numbers"),
        (body({**IDS, "data": [1, 2, 3, 4, 5, 6.5]}, X), None, "data holds float64, not int64"),
        (body({**IDS, "data": [[1], [1, 2]]}, X), None, "no full array"),
        (body({**IDS, "data": "abc"}, X), None, "data is missing"),
        (body(IDS, {**X, "data": ["a", 1, 2, 3]}), None, "no full array of numbers"),
        (body(IDS, {**X, "shape": [1, 2], "data": [1, 2]}), None, "the first axes differ"),
        (body(IDS, X, outputs=[{"name": "nope"}]), None, "'nope' is no output"),
        (body(IDS, X), "9999999", "is not the length of a JSON header"),
        (body(IDS, X), "x", "is not the length of a JSON header"),
        (
            body(IDS, {k: v for k, v in X.items() if k != "data"} | {"parameters": {"binary_data_size": 9}}),
            None,
            "9 is",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_mistake_is_one_sentence(sent: bytes, length: str | None, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(sent, length, ENDS)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*IDS, "parameters"]), inner),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from([*IDS, "parameters"]), json_values), max_size=3), json_values)
def test_no_json_ends_in_another_error(inputs: list[Any], more: Any) -> None:
    assume(_finite([inputs, more]))
    sent = json.dumps({"inputs": inputs, "outputs": more, "parameters": more}).encode()
    try:
        made = parse(sent, None, ENDS)
    except RequestError:
        return
    assert set(made.inputs) == {"ids", "x"}


def _finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@given(st.binary(max_size=64), st.integers(0, 80))
def test_no_bytes_end_in_another_error(noise: bytes, length: int) -> None:
    with pytest.raises(RequestError):
        parse(noise, str(length), ENDS)


@pytest.mark.parametrize("dtype", sorted(protocol.NAMES))
def test_every_datatype_goes_in_and_out(dtype: str) -> None:
    ends = Ends.of([Port("a", ("batch", 2), dtype)], [Port("a", ("batch", 2), dtype)])
    values = np.array([[1, 0], [1, 1]], dtype)
    said = {"name": "a", "shape": [2, 2], "datatype": protocol.NAMES[dtype], "data": values.tolist()}
    request = parse(body(said), None, ends)
    np.testing.assert_array_equal(request.inputs["a"], values)
    assert request.inputs["a"].dtype == np.dtype(dtype)
    answer = orjson.loads(protocol.encode(request, {"a": values}, "m", "1")[0])["outputs"][0]
    assert answer["data"] == values.reshape(-1).tolist()


def test_a_smaller_answer_holds_the_same_classes() -> None:
    ports = list(ENDS.outputs.values())
    random = np.random.default_rng(0)
    mask = {"seg": random.standard_normal((2, 21, 8, 8)).astype(np.float32)}
    seg = [Port("seg", ("batch", 21, 8, 8), kind="logits")]
    (labels,) = reduce.reduced(mask, seg, "labels").values()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, mask["seg"].argmax(1))
    top = reduce.reduced(mask, seg, "top5")
    np.testing.assert_array_equal(top["seg_index"][:, 0], mask["seg"].argmax(1))
    assert (np.diff(top["seg_score"], axis=1) <= 0).all()
    assert reduce.reduced(OUT, ports, "float16")["embedding"].dtype == np.float16
    assert set(reduce.reduced(OUT, ports, "labels")) == {"logits_label", "embedding"}
    with pytest.raises(RequestError, match="choose from top5, float16, labels"):
        reduce.check("top3")


@pytest.mark.parametrize(
    ("accepted", "size", "how"),
    [
        ("gzip, zstd", 5000, "zstd"),
        ("gzip", 5000, "gzip"),
        ("br", 5000, ""),
        ("*", 5000, "zstd"),
        ("zstd;q=0, gzip;q=0.5", 5000, "gzip"),
        ("identity", 5000, ""),
        ("zstd;q=x", 5000, ""),
        ("gzip, zstd", 100, ""),
        ("", 5000, ""),
    ],
)
def test_an_answer_is_compressed_as_the_client_accepts(accepted: str, size: int, how: str) -> None:
    assert reduce.encoding(accepted, size) == how


def test_what_is_compressed_is_read_again_and_bombs_are_not_unpacked() -> None:
    text = b"mask" * 5000
    assert zstandard.ZstdDecompressor().decompress(reduce.compressed(text, "zstd")) == text
    assert gzip.decompress(reduce.compressed(text, "gzip")) == text
    for how in ("zstd", "gzip"):
        assert reduce.decompressed(reduce.compressed(text, how), how, 100_000) == text
        with pytest.raises(reduce.TooLargeError):
            reduce.decompressed(reduce.compressed(b"\0" * 10**7, how), how, 1000)
        with pytest.raises(RequestError):
            reduce.decompressed(b"no such bytes", how, 1000)
    with pytest.raises(RequestError, match="ends early"):
        reduce.decompressed(reduce.compressed(text, "gzip")[:-20], "gzip", 100_000)


def test_the_cache_knows_version_names_shapes_and_types_apart() -> None:
    cache = ResultCache(10_000, 1000)
    a = {"x": np.arange(4, dtype=np.float32)}
    keys = [
        cache.key("v1", a),
        cache.key("v2", a),
        cache.key("v1", {"y": a["x"]}),
        cache.key("v1", {"x": a["x"].reshape(2, 2)}),
        cache.key("v1", {"x": a["x"].view(np.int32)}),
    ]
    assert len(set(keys)) == 5
    assert cache.key("v1", {"x": a["x"].copy()}) == keys[0]
    assert cache.key("v1", {"x": np.zeros(1000, np.float32)}) is None
    assert ResultCache(0, 1000).key("v1", a) is None


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(400, 4000))
def test_the_cache_answers_what_it_was_given_and_stays_within_its_bytes(asked: list[int], limit: int) -> None:
    cache = ResultCache(limit, 1000)
    for n in asked:
        key = cache.key("v", {"x": np.array([n])})
        found = cache.get(key)
        if found is None:
            cache.put(key, {"y": np.full((50, n + 1), n)[7:8]})  # a view of a larger batch
        else:
            np.testing.assert_array_equal(found["y"], np.full((1, n + 1), n))
        assert cache.bytes <= limit
    assert cache.hits + cache.misses == len(asked)
    assert len(cache) <= cache.misses - cache.evictions  # what was too large by itself was never kept
