"The anatomy of a chapter that a machine can see"
import ast
import json
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).parents[1] / "nbs"
CHAPTERS = sorted(NBS.glob("[0-9]*.ipynb"))
PIPELINES = sorted(NBS.glob("pipelines/*.ipynb"))


@cache
def notebook(path): return nbformat.read(path, as_version=4)
def cells(path): return notebook(path).cells
def exported(path): return [c.source for c in cells(path) if c.cell_type == "code" and re.match(r"#\| *export\b", c.source)]
def has_picture(cell): return any(k.startswith("image/") for o in cell.get("outputs", []) for k in o.get("data", {}))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_opens_with_a_noun_and_a_promise(path):
    title = next(c.source for c in cells(path) if c.cell_type == "markdown").split("\n\n")
    assert re.match(r"# \w", title[0]) and title[1].startswith("> ")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_shows_a_world_early_and_ends_in_short(path):
    shown = [i for i, c in enumerate(c for c in cells(path) if c.cell_type != "raw") if has_picture(c)]
    assert shown and shown[0] < 10 and len(shown) >= 2
    text = "\n".join(c.source for c in cells(path) if c.cell_type == "markdown")
    assert "## In short" in text and "## When it goes wrong" in text or path.stem.startswith("08")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_stored_outputs_are_whole_and_small(path):
    for c in cells(path):
        assert len(json.dumps(c)) < 300e3
        assert not [o for o in c.get("outputs", []) if o.output_type == "error" or o.get("name") == "stderr"]
        assert not [o for o in c.get("outputs", []) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert path.stat().st_size < 1.5e6 and "widgets" not in notebook(path).metadata


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_exports_are_short(path):
    for source in exported(path):
        assert len(source.splitlines()) <= 42, source[:200]
        for f in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)):
            assert f.end_lineno - f.body[0].lineno + 1 <= 30, f.name
            assert len([a for a in f.args.args + f.args.kwonlyargs if a.arg != "self"]) <= 8, f.name
    lines = sum(len(s.splitlines()) for s in exported(path))
    assert lines < 300


@pytest.mark.parametrize("path", [*CHAPTERS, *PIPELINES], ids=lambda p: p.stem)
def test_no_stars_no_leftovers(path):
    for c in cells(path):
        if c.cell_type == "code":
            assert not re.search(r"^from .* import \*|^%%time|nbdev_export\(\)", c.source, re.M)
        assert not re.search(r"\bTO[D]O\b", c.source)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_pipelines_define_nothing(path):
    found = cells(path)
    assert "skip_exec: true" in found[0].source
    assert sum("parameters" in c.metadata.get("tags", []) for c in found) == 1
    for c in found:
        if c.cell_type == "code":
            assert not [n for n in ast.walk(ast.parse(c.source)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
            assert not re.search(r"#\| *(default_exp|export)", c.source)
    names = [ast.unparse(n) for c in found if "parameters" in c.metadata.get("tags", []) for n in ast.parse(c.source).body]
    assert "test_dir = ''" in names and any(n.startswith("out_dir = ") for n in names)
