"""The nine cases of docs/own-model.md in small: each writes data and a model into a folder and says the task's spec."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import TaskSpec

CLASSES = ("cat", "dog", "owl")


def photos(folder: Path, splits: dict[str, int] | None = None, size: tuple[int, int] = (20, 24)) -> Path:
    """JPEG files in class folders; each class has its own brightness."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, each in (splits or {"train": 12, "val": 8}).items():
        for place, name in enumerate(CLASSES):
            target = folder / "photos" / split / name
            target.mkdir(parents=True, exist_ok=True)
            for index in range(each):
                pixels = np.clip(rng.normal(60 + 70 * place, 25, (*size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.jpg")
    return folder / "photos"


def torchvision(folder: Path) -> TaskSpec:
    """(a) ResNet-18 and an image folder."""
    photos(folder)
    return TaskSpec(model="torchvision:resnet18", data="imagefolder:photos", size=32, folder=str(folder))


def timm(folder: Path) -> TaskSpec:
    """(b) MobileNetV3 and an image folder."""
    photos(folder)
    return TaskSpec(model="timm:mobilenetv3_small_050", data="imagefolder:photos", size=32, folder=str(folder))


WORDS = ("good", "fine", "great", "bad", "awful", "dull", "film", "plot", "actor", "the", "a", "was", "is", "very")


def bert(folder: Path, labels: int = 2, tokenizer: bool = True) -> Path:
    """A tiny BERT classifier with random weights and its tokenizer, as save_pretrained writes them."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from tasks.imports import import_torchvision

    import_torchvision()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    home = folder / "bert"
    home.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    if tokenizer:
        (home / "vocab.txt").write_text("\n".join(vocabulary))
        transformers.BertTokenizerFast(vocab_file=str(home / "vocab.txt")).save_pretrained(home)
    names = dict(enumerate(("neg", "pos") if labels == 2 else map(str, range(labels))))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(home)
    return home


def reviews(folder: Path, rows: int = 120) -> Path:
    """A CSV of texts of 2 to 20 words with their labels."""
    rng = random.Random(0)
    with (folder / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            kind = rng.randrange(2)
            own = WORDS[3:6] if kind == 0 else WORDS[:3]
            text = [rng.choice(own) if rng.random() < 0.5 else rng.choice(WORDS[6:]) for _ in range(rng.randint(2, 20))]
            writer.writerow([" ".join(text), ("neg", "pos")[kind]])
    return folder / "reviews.csv"


def text(folder: Path) -> TaskSpec:
    """(c) A Hugging Face classifier in a folder, and a CSV."""
    bert(folder)
    reviews(folder)
    return TaskSpec(model="hf:bert", data="csv:reviews.csv", text="text", label="label", folder=str(folder))


LIGHTNING = """
import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_acc", (logits.argmax(1) == y).float().mean())
        self.log("val_loss", nn.functional.cross_entropy(logits, y))


class Data(lightning.LightningDataModule):
    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, 8, generator=generator)
        y = x[:, :4].argmax(1)
        self.parts = [TensorDataset(x[a:b], y[a:b]) for a, b in ((0, 120), (120, 160), (160, 200))]

    def train_dataloader(self):
        return DataLoader(self.parts[0], batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], batch_size=32)

    def test_dataloader(self):
        return DataLoader(self.parts[2], batch_size=32)
"""


def lightning(folder: Path) -> TaskSpec:
    """(d) A LightningModule and its LightningDataModule."""
    (folder / "lit.py").write_text(LIGHTNING)
    return TaskSpec(model="lit.py:Net", data="lit.py:Data", metric="val_acc", folder=str(folder))


KERAS = """
import numpy as np
import tensorflow as tf


def net():
    image = tf.keras.Input((12, 12, 1), name="image")
    first = tf.keras.layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    second = tf.keras.layers.Conv2D(8, 3, padding="same", activation="relu")(first)
    pooled = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.Add()([first, second]))
    return tf.keras.Model(image, tf.keras.layers.Dense(3, activation="softmax")(pooled))


def data(split):
    rng = np.random.default_rng(len(split))
    y = rng.integers(0, 3, 90)
    x = rng.normal(size=(90, 12, 12, 1)).astype("float32") + y[:, None, None, None]
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
"""


def keras(folder: Path) -> TaskSpec:
    """(e) A Keras Functional model and tf.data."""
    (folder / "net.py").write_text(KERAS)
    return TaskSpec(model="net.py:net", data="net.py:data", folder=str(folder))


def rows(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, 8] and their classes, int64 [count]."""
    x = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return x, x[:, :4].argmax(1)


def onnx_file(path: Path, batch: int | str = "batch", softmax: bool = True) -> Path:
    """A network of two layers, [batch, 8] -> [batch, 4]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    weights = {"w1": rng.normal(size=(8, 16)), "w2": rng.normal(size=(16, 4))}
    last = "scores" if softmax else "y"
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["z"] if softmax else [last], name="second"),
    ]
    nodes += [helper.make_node("Softmax", ["z"], [last], name="softmax")] if softmax else []
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def onnx(folder: Path) -> TaskSpec:
    """(f) An ONNX file and arrays without targets."""
    onnx_file(folder / "net.onnx")
    np.savez(folder / "calib.npz", x=rows()[0])
    return TaskSpec(model="net.onnx", data="npz:calib.npz", folder=str(folder))


SEGMENTER = """
import numpy as np
import torch
from torch import nn


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        wide = torch.relu(self.down(x))
        return self.head(torch.cat([wide, self.up(torch.relu(self.deep(wide)))], 1))


def model():
    return UNet()


def data(split):
    rng = np.random.default_rng({"train": 0, "validation": 1, "test": 2}[split])
    mask = rng.integers(0, 3, (40, 16, 16)).astype(np.uint8)
    noise = rng.normal(0, 0.3, (40, 3, 16, 16)).astype(np.float32)
    return np.eye(3, dtype=np.float32)[mask].transpose(0, 3, 1, 2) + noise, mask


def loss(outputs, batch):
    image, mask = batch
    return nn.functional.cross_entropy(outputs, mask)


METRICS = {"miou": "maximize"}


def metric(outputs, targets):
    found = outputs.argmax(1)
    shares = [((found == k) & (targets == k)).sum() / ((found == k) | (targets == k)).sum() for k in range(3)]
    return np.mean(shares)
"""


def segmenter(folder: Path) -> TaskSpec:
    """(g) A plain file: a U-Net with mIoU."""
    (folder / "unet.py").write_text(SEGMENTER)
    return TaskSpec(name="unet.py", folder=str(folder))


RECOMMENDER = """
import numpy as np
import torch
from torch import nn


class Recommender(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(20, 8), nn.Embedding(30, 8)
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user, item):
        return self.layers(torch.cat([self.user(user), self.item(item)], 1)).squeeze(1)


class Ratings:
    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.user, self.item = rng.integers(0, 20, 300), rng.integers(0, 30, 300)
        self.rating = (self.user + self.item) % 5

    def __len__(self):
        return len(self.rating)

    def __getitem__(self, row):
        return {"user": self.user[row], "item": self.item[row]}, float(self.rating[row])


def model():
    return Recommender()


def data(split):
    return Ratings(("train", "validation", "test").index(split))


def loss(outputs, targets):
    return nn.functional.mse_loss(outputs, targets)
"""


def recommender(folder: Path) -> TaskSpec:
    """(h) A recommender with two inputs, and NDCG."""
    (folder / "ratings.py").write_text(RECOMMENDER)
    return TaskSpec(name="ratings.py", metric="ndcg, mse", folder=str(folder))


AUDIO = '''
import numpy as np
import torch
from torch import nn


class Keywords(nn.Module):
    """Waveform [B, 800] -> scores of 4 words."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 16, 40, stride=10), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.ReLU()
        )
        self.head = nn.Linear(16, 4)

    def forward(self, wave):
        return self.head(self.layers(wave.unsqueeze(1)).mean(2))


def model():
    return Keywords()


def data(split):
    rng = np.random.default_rng(len(split))
    time = np.arange(800) / 8000
    for _ in range(80):
        word = int(rng.integers(0, 4))
        wave = np.sin(2 * np.pi * 300 * (word + 1) * time + rng.uniform(0, 6)) + rng.normal(0, 0.2, 800)
        yield wave.astype(np.float32), word
'''


def audio(folder: Path) -> TaskSpec:
    """(i) An audio classifier whose data is a generator."""
    (folder / "words.py").write_text(AUDIO)
    return TaskSpec(name="words.py", folder=str(folder))


Case = Callable[[Path], TaskSpec]
TORCH: dict[str, Case] = {
    "torchvision": torchvision,
    "timm": timm,
    "text": text,
    "lightning": lightning,
    "onnx": onnx,
    "segmenter": segmenter,
    "recommender": recommender,
    "audio": audio,
}
ALL: dict[str, Case] = {**TORCH, "keras": keras}


def quiet(stage: str, fraction: float) -> Any:
    """A progress that tells nobody."""
