"""A pruned network on disk: read without its author's code, and with it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks.zoo import NETWORKS
from trainers.pytorch.capture import outputs_of
from trainers.pytorch.channels import ChannelPruning
from trainers.pytorch.saved import program_of, restore, save
from trainers.recipe import Pruning

torch.set_num_threads(1)
READER = """
import sys, torch
torch.set_num_threads(1)
program = torch.export.load(sys.argv[1] + "/program.pt2").module()
given = torch.load(sys.argv[1] + "/inputs.pt", weights_only=True)
torch.save([each.detach() for each in program(*given)], sys.argv[1] + "/outputs.pt")
print(sorted({name.split(".")[0] for name in sys.modules} & {"trainers", "timm", "transformers", "benchmarks"}))
"""


@pytest.mark.parametrize("name", ["vit_tiny", "bert", "mobilenet_v3"])
def test_a_pruned_network_is_restored_into_a_fresh_one(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().eval()
    ChannelPruning(model, Pruning("channel", 0.5, "one_shot"), network.example(2), network.keep).finish()
    inputs = network.example(3)
    save(model, tmp_path, network.example(2), network.inputs)
    with torch.no_grad():
        exact = outputs_of(model(*inputs))
        again = outputs_of(restore(network.build().eval(), tmp_path)(*inputs))
        program = outputs_of(program_of(tmp_path)(*inputs))
    for one, other, third in zip(exact, again, program, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, third, atol=1e-5, rtol=1e-4)


def test_it_is_read_without_pickles_and_without_our_code(tmp_path: Path) -> None:
    network = NETWORKS["two_heads"]
    torch.manual_seed(0)
    model = network.build().eval()
    ChannelPruning(model, Pruning("channel", 0.5, "one_shot"), network.example(2)).finish()
    save(model, tmp_path, network.example(2))
    inputs = network.example(3)
    torch.save(list(inputs), tmp_path / "inputs.pt")
    command = [sys.executable, "-c", READER, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert said.stdout.strip().splitlines()[-1] == "[]"
    with torch.no_grad():
        for one, other in zip(torch.load(tmp_path / "outputs.pt", weights_only=True), model(*inputs), strict=True):
            torch.testing.assert_close(one, other)
    assert json.loads((tmp_path / "widths.json").read_text())["trunk.0"]["out_channels"] == 16
    assert safetensors.torch.load_file(tmp_path / "weights.safetensors")["trunk.0.weight"].shape[0] == 16
    assert not [name for name in zipfile.ZipFile(tmp_path / "program.pt2").namelist() if name.endswith(".pkl")]
