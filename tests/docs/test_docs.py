# SPDX-License-Identifier: Apache-2.0
"""Pages say what the code says; importing stays light; the size rules hold."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moored import __all__ as public
from moored.catalogue import catalogue, find, make
from moored.errors import ConfigError

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src/moored").rglob("*.py"))


def test_the_paper_index_is_fresh():
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_is_light():
    """So `import moored` and `moored --help` take no time; what a name needs is loaded with the name."""
    program = "import moored, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "moored" in found
    assert not {"datasets", "numpy", "peft", "pydantic", "rich", "torch", "transformers", "trl", "typer"} & set(found)


def test_every_public_name_loads_and_is_documented():
    import moored

    for name in public:
        assert getattr(moored, name).__doc__, name
    with pytest.raises(AttributeError):
        moored.nothing  # noqa: B018


@pytest.mark.parametrize("noun", ["defenses", "repairs", "attacks", "judges"])
def test_every_method_is_a_public_name(noun):
    import moored

    for cls in catalogue(noun).values():
        assert getattr(moored, cls.__name__) is cls


@pytest.mark.parametrize("noun", ["defenses", "repairs", "attacks", "judges", "metrics", "tasks"])
def test_the_catalogue_finds_and_builds(noun):
    for name, cls in catalogue(noun).items():
        assert find(noun, name) is find(noun, cls.__name__) is find(noun, name.replace("_", "-")) is cls
        with pytest.raises(ConfigError, match="unknown parameter"):
            make(noun, name, no_such_parameter=1)
        with pytest.raises(ConfigError, match=f"did you mean .*'{name}'"):
            find(noun, name + "x")


def test_methods_document_themselves():
    for noun in ("defenses", "repairs"):
        for cls in catalogue(noun).values():
            info = cls.info
            assert info.cost, cls
            assert info.fidelity == "paper" or info.differs, cls
            if info.arxiv and cls.__module__ != "moored.repairs.baselines":
                for heading in ("Paper:", "Algorithm:", "Args:", "Needs:", "Cost:", "Differs from paper:", "Raises:"):
                    assert heading in cls.__doc__, (cls, heading)
                assert isinstance(cls.paper(), cls)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src/moored")))
def test_sizes_and_headers(path):
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.body[0].lineno + 1
            if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
                body = node.end_lineno - node.body[0].end_lineno
            assert body <= 60, f"{node.name} has {body} lines"


WITH_EXAMPLES = ["errors", "serving", "hf.rewards", *(f"defenses.{name}" for name in catalogue("defenses"))]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings(module):
    found = doctest.testmod(importlib.import_module(f"moored.{module}"), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert found.attempted
    assert not found.failed


def test_files_named_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_the_overview_holds_every_defence_against_a_smaller_rate(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    evidence = importlib.import_module("evidence")
    seed = (ROOT / "results/catalogue-seed0.json").read_text()
    for name in ("catalogue", "catalogue-clean"):
        (tmp_path / f"{name}.json").write_text(seed)
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    lines = [line for line in evidence.overview().splitlines() if line.startswith("| ")]
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines}
    assert re.fullmatch(r"[\d.]+ \[\d+, \d+\]", cells["Lisa"][4])
    assert cells["Half the learning rate"][4] == "–"
