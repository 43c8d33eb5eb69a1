"""The public names of `pare.sampling` as their documentation uses them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from pare import sampling


def test_the_example_of_its_documentation() -> None:
    points = [{"sparsity": x / 10} for x in range(10)]
    model = sampling.Surrogate("maximize").fit(points, [0.99 - 0.02 * float(p["sparsity"]) ** 4 for p in points])
    accuracy, doubt = model.predict([{"sparsity": 0.45}, {"sparsity": 0.9}])
    front, directions, reference = np.array([[0.9899, 30.0], [0.98, 12.0]]), ["maximize", "minimize"], [0.97, 120.0]
    candidates = np.column_stack([accuracy, [31.5, 9.0]])
    share = sampling.gain_share(front, directions, reference, candidates, np.column_stack([doubt, np.zeros(2)]))
    assert share[0] < 0.003 < share[1]
    values = np.vstack([front, candidates])
    assert not sampling.promotes(values, values, directions, row=2, share=0.75)
    assert sampling.promotes(values, values, directions, row=3, share=0.75)


def test_every_public_name_is_documented_and_nothing_heavy_is_loaded() -> None:
    assert all(getattr(sampling, name).__doc__ for name in sampling.__all__)
    code = "import sys, search.sampling.gain, search.sampling.rungs, search.sampling.surrogate; "
    code += "print(sorted({'torch', 'tensorflow', 'mlflow', 'optuna', 'sklearn', 'scipy'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "sampling.md").read_text()
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    assert names["accuracy"].shape == (1,)
