"The site without Quarto: sidebar, links, documented symbols, README"
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]


def tool(name):
    import importlib.util
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built():
    "The finished site, built as a reader builds it"
    subprocess.run([sys.executable, "-P", "tools/site.py"], cwd=ROOT, check=True)
    return ROOT / "_docs"


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs: self.ids.add(attrs["id"])
        if tag == "a" and attrs.get("href"): self.links.append(attrs["href"])


def test_sidebar_lists_every_page_once():
    listed = [notebook for _, notebook in tool("site").sidebar()]
    there = {p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert sorted(listed) == sorted(there)


def test_every_symbol_is_documented(built):
    found = 0
    for path in (ROOT / "_proc").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and "show_doc(" in cell.source:
                found += 1
                assert any("text/markdown" in o.get("data", {}) for o in cell.outputs), f"{path.name}: {cell.source}"
                assert not [o for o in cell.outputs if o.output_type == "error" or "Traceback" in str(o)], f"{path.name}: {cell.source}"
    assert found > 80


def test_no_link_leads_nowhere(built):
    pages = {p: Seen(p.read_text(encoding="utf-8")) for p in built.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"https?:|mailto:", link): continue
            place = (path.parent / link.split("#")[0]).resolve() if not link.startswith("#") else path
            assert place in pages or place.exists(), f"{path.name} links to {link}"


def test_no_reference_is_unresolved():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        for name in re.findall(r"@((?:fig|tbl|sec)-[\w-]+)", text): assert f"#{name}" in text, f"{path.name}: @{name}"


def test_readme_is_the_index():
    text, pictures = tool("readme").readme()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run: make readme"
    for name, data in pictures.items(): assert (ROOT / name).read_bytes() == data, "run: make readme"
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text): assert (ROOT / link).exists(), link
