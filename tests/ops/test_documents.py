"""The documents are true where a test can tell: settings, commands, exit codes, modules, dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from b2fs.cli.main import COMMANDS, Options, cli
from b2fs.errors import Exit

_ROOT = Path(__file__).parents[2]
README = (_ROOT / "README.md").read_text()
ARCHITECTURE = (_ROOT / "b2fs/ARCHITECTURE.md").read_text()


def test_settings_of_the_readme() -> None:
    """The table of settings is the one that `b2fs config list` prints."""
    table = README.split("by tests -->")[1].split("<!-- end")[0].strip()
    assert table == CliRunner().invoke(cli, ["config", "list"], obj=Options()).output.strip()


def test_commands_of_the_readme() -> None:
    """Every command is in the README, and the README names no other."""
    named = set(re.findall(r"^\| `b2fs ([a-z]+)", README, re.MULTILINE))
    assert named == set(COMMANDS) - {"try"}  # that one is `make run`


def test_exit_codes_of_the_readme() -> None:
    """Every exit code is explained."""
    named = set(map(int, re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)))
    assert named == {code.value for code in Exit}


def test_modules_of_the_architecture() -> None:
    """Every file and folder that ARCHITECTURE.md names is there."""
    named = set(re.findall(r"`([a-z0-9_/]+(?:\.py|/))`", ARCHITECTURE)) - {"cli/"}
    missing = [name for name in named if not list((_ROOT / "b2fs").rglob(name.rstrip("/")))]
    assert named
    assert missing == []


@pytest.mark.parametrize("document", ["README.md", "SEMANTICS.md", "tests/LESSONS.md"])
def test_tests_that_documents_link_to(document: str) -> None:
    """Every test that a document links to is in the file that it links to."""
    path = _ROOT / document
    links = re.findall(r"\[`(test_\w+)(?:\.py)?`\]\(([\w/]+\.py)\)", path.read_text())
    missing = [
        (name, file)
        for name, file in links
        if not file.endswith(f"/{name}.py") and f"def {name}(" not in (path.parent / file).read_text()
    ]
    assert len(links) > 20
    assert missing == []


def test_dependencies_of_the_architecture() -> None:
    """Every dependency has its reason, and nothing else is listed."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
    section = ARCHITECTURE.split("## Dependencies")[1]
    assert set(re.findall(r"^\| ([a-z0-9]+) \|", section, re.MULTILINE)) - {"package"} == wanted
