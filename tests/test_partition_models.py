"""Networks that people have, exported by us, cut into two and three parts: the whole's answers, to the bit in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.zoo import NETWORKS
from runtimes import onnxruntime
from runtimes.base import Artifact
from serving import package, pieces
from serving.settings import Settings
from tests.test_partition import chained
from trainers.pytorch import quantize
from trainers.pytorch.export import export


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "scheme", "balance"),
    [
        ("resnet18", "fp32", "time"),
        ("resnet18", "int8", "memory"),
        ("vit_tiny", "fp32", "memory"),
        ("vit_tiny", "int8", "time"),
        ("bert", "fp32", "memory"),
    ],
)
def test_two_and_three_parts_answer_as_the_whole(name: str, scheme: str, balance: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]
    model, file = network.build().eval(), tmp_path / "net.onnx"
    if scheme == "int8":
        model = quantize.convert(quantize.prepare(model, [network.example(8)]))
    export(model, network.example(2), file, {}, network.inputs)
    made = package.make(file, "net", "onnxruntime")
    whole = onnxruntime.load(Artifact.of(file), 1)
    for parts in (2, 3):
        found = pieces.cut(made, Settings("net", balance=balance), parts)
        sizes = [len(each.content) for each in found]
        assert balance == "time" or max(sizes) < 0.85 * len(made.content)
        for rows in (1, 5):
            inputs = dict(
                zip(
                    (port.name for port in made.about.inputs),
                    (each.numpy() for each in network.example(rows)),
                    strict=True,
                )
            )
            answers = chained(found, inputs, tmp_path)
            for output, wanted in whole.run(inputs).items():
                if scheme == "int8":
                    np.testing.assert_array_equal(answers[output], wanted)
                else:
                    np.testing.assert_allclose(answers[output], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
