"Every command on every page is one that planetlab understands"
import json
import re
import shlex

import nbformat
import pytest
from conftest import ROOT
from typer.main import get_command

from planetlab.cli import app
from planetlab.runs import find_pipeline, parameters, read_preset, settle

PAGES = [ROOT / "nbs" / "index.ipynb", *sorted((ROOT / "nbs" / "guides").glob("*.ipynb")), ROOT / "nbs" / "62_cli.ipynb", ROOT / "nbs" / "61a_archive_cli.ipynb"]


def commands(path):
    "The lines of shell blocks that begin with planetlab"
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        for line in re.split(r"[\n;]", block):
            words = shlex.split(line, comments=True)
            if words[:3] == ["python", "-m", "planetlab"]: words = words[2:]
            if words[:1] == ["planetlab"]: yield words[1:]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_commands_parse(path):
    for words in commands(path):
        if not words or words[0].startswith("--"): continue
        command, ctx = get_command(app), None
        name, rest = "planetlab", words
        while hasattr(command, "resolve_command"): # a group
            ctx = command.context_class(command, parent=ctx, info_name=name)
            name, command, rest = command.resolve_command(ctx, rest)
        given = command.make_context(name, list(rest), parent=ctx).params # raises for what it does not know
        if words[0] == "run" and given["name"]:
            notebook = find_pipeline(given["name"])
            settle(parameters(notebook), read_preset(notebook, given["preset"]) if given["preset"] else {}, dict(item.split("=", 1) for item in given["p"]))


def test_there_are_commands_to_read(): assert sum(1 for path in PAGES for _ in commands(path)) > 30


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "guides").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_guide_opens_with_a_noun_and_a_promise_and_is_small(path):
    cells = nbformat.read(path, as_version=4).cells
    title = next(c.source for c in cells if c.cell_type == "markdown").split("\n\n")
    assert re.match(r"# \w", title[0]) and title[1].startswith("> ")
    for c in cells:
        assert len(json.dumps(c)) < 300e3
        assert not [o for o in c.get("outputs", []) if o.output_type == "error" or o.get("name") == "stderr"] and "/tmp/" not in str(c.get("outputs", ""))


def test_the_changes_shown_are_the_changes():
    shown = "".join(o.data["text/markdown"] for c in nbformat.read(ROOT / "nbs" / "guides" / "changelog.ipynb", as_version=4).cells if c.cell_type == "code" for o in c.outputs)
    assert shown.strip() == (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").removeprefix("# Changes\n").strip(), "execute nbs/guides/changelog.ipynb"
