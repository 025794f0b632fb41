"Reading order is import order; rasters and tensors stay on their sides"
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "planetlab"
CHAPTER = {p: m[1] for p in sorted(PACKAGE.rglob("*.py"))
           if (m := re.search(r"File to edit: .*/(\d\d[a-z]?)_", p.read_text(encoding="utf-8")))}
IMAGES = {"rasterio", "geopandas", "pyogrio", "shapely"}
TENSORS = {"torch", "torchvision", "safetensors"}


def ours(path):
    "Files of this package that `path` imports"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield path.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")


def theirs(path):
    "Top-level names of the other packages that `path` imports"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (a.name.split(".")[0] for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split(".")[0]


def test_every_module_has_a_chapter():
    assert len(CHAPTER) > 20
    others = set(PACKAGE.rglob("*.py")) - set(CHAPTER)
    assert {p.name for p in others} <= {"__init__.py", "_modidx.py"}


@pytest.mark.parametrize("path", CHAPTER, ids=lambda p: p.stem)
def test_imports_earlier_chapters_only(path):
    for dep in ours(path):
        assert CHAPTER[dep] < CHAPTER[path], f"{path.name} imports the later {dep.name}"


@pytest.mark.parametrize("path", CHAPTER, ids=lambda p: p.stem)
def test_rasters_and_tensors_stay_apart(path):
    used, decade = set(theirs(path)), int(CHAPTER[path][0])
    if decade in (0, 1, 5): assert not used & TENSORS, f"{path.name} is on the side of pixels"
    if decade in (2, 3): assert not used & IMAGES, f"{path.name} is on the side of tensors"


@pytest.mark.parametrize("path", CHAPTER, ids=lambda p: p.stem)
def test_private_names_stay_at_home(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert not [a.name for a in node.names if a.name.startswith("_") and not a.name.endswith("__")]


@pytest.mark.parametrize("path", CHAPTER, ids=lambda p: p.stem)
def test_every_import_is_used(path):
    source = path.read_text(encoding="utf-8")
    names = [(a.asname or a.name).split(".")[0] for node in ast.walk(ast.parse(source))
             if isinstance(node, (ast.Import, ast.ImportFrom)) for a in node.names]
    unused = [n for n in names if len(re.findall(rf"\b{n}\b", source)) < 2]
    assert not unused, f"{path.name} imports {unused} and never uses it"


def test_import_is_light():
    code = "import sys, planetlab; print([m for m in ('torch', 'rasterio', 'sklearn', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
