"""The notebook in docs/ runs from top to bottom, as a kernel would run it: one process, one name space."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs").glob("*.ipynb"))


@pytest.mark.cluster
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(notebook: Path, root: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells), "clear the outputs: they grow old"
    code = "\n".join(cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]) for cell in cells)
    script = root.parent / "notebook.py"
    # Worker processes import the main module: what runs must stand behind the guard, as in a notebook it does not.
    body = "\n".join(f"    {line}" for line in code.replace('"mlruns"', repr(str(root))).splitlines())
    script.write_text(f'if __name__ == "__main__":\n{body}\n')
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=root.parent)
    assert done.returncode == 0, done.stdout + done.stderr
