"""What the README names is there: commands, studies, settings, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from search.study.config import check

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_command_is_a_module() -> None:
    named = set(re.findall(r"python -m (search\.\w+)", README))
    assert {"search.run", "search.report", "search.pick", "search.ui"} <= named
    assert [n for n in named if not (ROOT / (n.replace(".", "/") + ".py")).exists()] == []


def test_the_table_of_studies_is_the_folder() -> None:
    study = re.compile(r"\| `\w+`(, `\w+`)? \| (Le|both|tiny|ResNet)")
    rows = [line.split("|")[1] for line in README.splitlines() if study.match(line)]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {path.stem for path in (ROOT / "experiments" / "study").glob("*.yaml")}


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"(?:`|^ {4})make (\w+)", README, re.MULTILINE))
    made = (ROOT / "Makefile").read_text()
    assert targets >= {"run", "test", "ui"}
    assert [t for t in targets if not re.search(rf"^{t}:", made, re.MULTILINE)] == []


def test_the_example_study_is_valid(tmp_path: Path) -> None:
    example = README.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mine.yaml").write_text(example)
    study = OmegaConf.to_container(OmegaConf.load(tmp_path / "mine.yaml"))
    assert check({"study": study}).study.name == "mine"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([\w/.]+)\)", README))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
