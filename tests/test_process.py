"""From a request to inputs and from outputs to an answer: images, texts, rows, arrays; what cannot be read is said."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving import process
from serving.errors import RequestError
from serving.process import Process
from tasks.base import Port, Serving

LOGITS: list[dict[str, Any]] = [
    {"name": "logits", "shape": ["batch", 3], "dtype": "float32", "kind": "logits", "axis": 1}
]
DIGIT: dict[str, Any] = {
    "kind": "image",
    "options": {"mode": "L", "mean": [0.25], "std": [0.5], "resize": [4, 6]},
    "answer": "label",
}
CHW: dict[str, Any] = {"name": "image", "shape": ["batch", 1, 4, 6], "dtype": "float32", "layout": "NCHW"}


def png(pixels: np.ndarray, form: str = "PNG") -> bytes:
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, form)
    return kept.getvalue()


def test_an_image_is_scaled_normalized_and_laid_out() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    wanted = (pixels.astype(np.float32) / 255 - 0.25) / 0.5
    made = Process(DIGIT, [CHW], LOGITS, Path()).inputs(png(pixels))["image"]
    assert made.shape == (1, 1, 4, 6)
    np.testing.assert_allclose(made[0, 0], wanted, rtol=1e-5)
    last = {"name": "image", "shape": ["batch", 4, 6, 1], "dtype": "float32"}
    made = Process(DIGIT, [last], LOGITS, Path()).inputs(png(pixels))["image"]
    np.testing.assert_allclose(made[0, :, :, 0], wanted, rtol=1e-5)


def test_the_shorter_side_is_resized_and_the_centre_cut() -> None:
    serving = {"kind": "image", "options": {"mode": "RGB", "resize": 8, "size": [8, 8]}}
    port = {"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "float32", "layout": "NCHW"}
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 8:24, 0] = 255  # the middle half is red
    made = Process(serving, [port], LOGITS, Path()).inputs(png(pixels))["x"]
    assert made.shape == (1, 3, 8, 8)
    assert made[0, 0, :, 1:-1].min() == 1.0
    assert made[0, 1:].max() == 0.0


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with the tokenizer.json of a five-word vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[PAD]": 7, "[UNK]": 0, "good": 1, "bad": 2, "film": 3}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_padding(pad_id=7, pad_token="[PAD]", length=512)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_text_becomes_ids_padded_to_a_length_that_texts_share(words: Path) -> None:
    ports = [{"name": name, "shape": ["batch", "length"], "dtype": "int64"} for name in ("input_ids", "attention_mask")]
    serving = {"kind": "text", "options": {"length": 16, "pad": 7}, "answer": "label", "classes": ["no", "yes"]}
    reader = Process(serving, ports, LOGITS, words)
    made = reader.inputs("good good film unknown")
    assert made["input_ids"].tolist() == [[1, 1, 3, 0, 7, 7, 7, 7]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert reader.inputs("bad " * 9)["input_ids"].shape == (1, 16)
    assert reader.inputs("bad " * 100)["input_ids"].shape == (1, 16)
    fixed = [{"name": "ids", "shape": ["batch", 12], "dtype": "int32"}]
    made = Process(serving, fixed, LOGITS, words).inputs("bad")
    assert made["ids"].shape == (1, 12)
    assert made["ids"].dtype == np.int32


def test_pairs_of_texts_and_a_model_without_a_mask_get_the_whole_length(words: Path) -> None:
    ports = [{"name": name, "shape": ["batch", "length"], "dtype": "int64"} for name in ("input_ids", "token_type_ids")]
    reader = Process({"kind": "text", "options": {"length": 16, "pad": 7}}, ports, LOGITS, words)
    made = reader.inputs(["good", "bad film"])
    assert made["input_ids"].tolist() == [[1, 2, 3] + [7] * 13]
    with pytest.raises(RequestError, match="list of two"):
        reader.inputs(["a", "b", "c"])


def test_images_are_prepared_to_the_pixel_as_for_training() -> None:
    from tasks import images

    random = np.random.default_rng(0)
    port = {"name": "x", "shape": ["batch", 3, 24, 20], "dtype": "float32", "layout": "NCHW"}
    for fit in ("crop", "squash"):
        for shape in ((50, 70, 3), (70, 33, 3), (10, 90, 3)):
            options = images.ImageOptions((24, 20), 26, fit, "RGB", "bicubic", (0.0,) * 3, (1.0,) * 3)
            sent = png(random.integers(0, 256, shape, dtype=np.uint8))
            made = Process({"kind": "image", "options": options.to_dict()}, [port], LOGITS, Path()).inputs(sent)["x"]
            np.testing.assert_array_equal(np.round(made[0] * 255), images.decode(sent, options))


def test_a_users_own_functions_are_called_and_what_they_raise_is_said(tmp_path: Path) -> None:
    code = """
def before(value):
    return {"image": [[[[value["n"] * 1.0] * 6] * 4]]}

def after(outputs):
    return {"sum": outputs["logits"].sum()}
"""
    (tmp_path / "mine.py").write_text(code)
    serving = {"kind": "arrays", "options": {"preprocess": "mine.py:before", "postprocess": "mine.py:after"}}
    reader = Process(serving, [CHW], LOGITS, tmp_path)
    assert reader.inputs({"n": 2})["image"].shape == (1, 1, 4, 6)
    assert reader.answers({"logits": np.ones((1, 3), np.float32)}) == [{"sum": 3.0}]
    with pytest.raises(RequestError, match=r"mine.py: before\(\) raised KeyError"):
        reader.inputs({})


def test_a_row_goes_to_the_inputs_its_columns_name() -> None:
    columns: list[Any] = [
        "age",
        {"name": "pay", "mean": 10, "std": 5},
        {"name": "job", "categories": ["cook", "smith"], "input": "id"},
    ]
    ports: list[dict[str, Any]] = [
        {"name": "x", "shape": ["batch", 2], "dtype": "float32"},
        {"name": "id", "shape": ["batch"], "dtype": "int64"},
    ]
    reader = Process({"kind": "row", "options": {"columns": columns}}, ports, LOGITS, Path())
    made = reader.inputs({"age": 3, "pay": "20", "job": "smith"})
    assert made["x"].tolist() == [[3.0, 2.0]]
    assert made["id"].tolist() == [1]


@pytest.mark.parametrize(
    ("kind", "request_", "says"),
    [
        ("image", b"", "there is none"),
        ("image", b"\x89PNG and then noise", "not a known image format"),
        ("image", png(np.zeros((40, 40), np.uint8))[:-30], "it is damaged"),
        ("text", "  ", "it is empty"),
        ("text", b"\xff\xfe", "not UTF-8"),
        ("row", [1], "send a JSON object of columns"),
        ("row", {"age": 1, "wage": 2}, "'wage' is no column"),
        ("row", {}, "the column 'age' is missing"),
        ("row", {"age": "x"}, "'x' is not a number"),
        ("row", {"age": "nan"}, "not a finite number"),
        ("arrays", {"y": [1]}, "send one array for each of image"),
        ("arrays", {"image": [[1], [1, 2]]}, "different lengths"),
        ("arrays", {"image": ["a"]}, "numbers only"),
        ("arrays", {"image": [[1]]}, "shape [1, 1] is not valid; send [batch, 1, 4, 6]"),
        ("arrays", {"image": []}, "is not valid"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_said_in_one_sentence(kind: str, request_: Any, says: str) -> None:
    reader = Process({"kind": kind, "options": {"mode": "L", "columns": ["age"]}}, [CHW], LOGITS, Path())
    with pytest.raises(RequestError) as caught:
        reader.inputs(request_)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from(["image", "row", "arrays"]))
def test_noise_is_refused_in_words(noise: bytes, kind: str) -> None:
    reader = Process({"kind": kind, "options": {"columns": ["a"]}}, [CHW], LOGITS, Path())
    with pytest.raises(RequestError):
        reader.inputs(noise)


def test_an_image_that_claims_too_many_pixels_is_not_decoded() -> None:
    header = png(np.zeros((1, 1), np.uint8))
    huge = header[:16] + (60_000).to_bytes(4, "big") + (60_000).to_bytes(4, "big") + header[24:]
    with pytest.raises(RequestError, match="image"):
        Process(DIGIT, [CHW], LOGITS, Path()).inputs(huge)


def test_a_label_with_its_probability_and_the_next_classes() -> None:
    serving = {"kind": "arrays", "answer": "label", "classes": ["cat", "dog", "owl"]}
    scores = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]], np.float32))
    first, second = Process(serving, [CHW], LOGITS, Path()).answers({"logits": scores})
    assert first["label"] == "dog"
    assert first["probability"] == pytest.approx(0.7, abs=1e-5)
    assert [each["label"] for each in first["top"]] == ["dog", "cat", "owl"]
    assert second["index"] == 0
    json.dumps([first, second])


def test_a_mask_is_the_class_of_every_pixel_and_values_are_json_even_where_not_finite() -> None:
    scores = np.zeros((1, 3, 2, 2), np.float32)
    scores[0, 2, 0, 1] = scores[0, 1, 1, 0] = 5
    port = [{"name": "out", "shape": ["batch", 3, 2, 2], "dtype": "float32", "kind": "logits", "axis": 1}]
    (answer,) = Process({"kind": "arrays", "answer": "mask"}, [CHW], port, Path()).answers({"out": scores})
    assert answer["mask"] == [[0, 2], [1, 0]]
    values = np.array([[1.5, np.nan]], np.float32)
    (answer,) = Process({"kind": "arrays"}, [CHW], LOGITS, Path()).answers({"logits": values})
    assert answer == {"logits": [1.5, None]}


@given(st.integers(1, 5000))
def test_padding_never_cuts_and_less_than_doubles(tokens: int) -> None:
    assert tokens <= process.padded(tokens) <= max(process.SMALLEST, 2 * tokens)


def test_the_plain_data_of_a_task_is_what_it_reads() -> None:
    serving = Serving("image", DIGIT["options"], "label", ("a", "b", "c")).to_dict()
    port = Port("image", ("batch", 1, 4, 6), layout="NCHW").__dict__
    made = Process(json.loads(json.dumps(serving)), [port], LOGITS, Path()).inputs(png(np.zeros((4, 6), np.uint8)))
    assert made["image"].shape == (1, 1, 4, 6)


def test_it_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    for name in ("__init__", "process", "picture", "errors"):
        file = Path(process.__file__).with_stem(name)
        (tmp_path / "serving" / file.name).write_bytes(file.read_bytes())
    code = "import sys; sys.path.insert(0, sys.argv[1]); import serving.process as made; print(made.__file__)"
    code += "; print([name for name in ('tasks', 'runtimes', 'PIL', 'tokenizers') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "serving" / "process.py"), "[]"]
