"The site without Quarto: sidebar, links, documented symbols, README"
import ast
import builtins
import json
import re
import symtable
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


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.twice, self.pictures, self.fetched, self.inside = [], set(), [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            if attrs["id"] in self.ids and not self.inside: self.twice.append(attrs["id"])
            self.ids.add(attrs["id"])
        self.inside += tag == "svg" # a drawing repeats the names of its glyphs
        if tag == "a" and attrs.get("href"): self.links.append(attrs["href"])
        if tag == "img": self.pictures.append(attrs)
        if tag in ("img", "script", "iframe") and attrs.get("src"): self.fetched.append(attrs["src"])
        if tag == "link": self.fetched.append(attrs["href"])

    def handle_endtag(self, tag): self.inside -= tag == "svg"


def test_sidebar_lists_every_page_once():
    listed = [notebook for _, notebook in tool("site").sidebar()]
    there = {p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert sorted(listed) == sorted(there)


def test_every_symbol_is_documented(site):
    found = 0
    for path in (ROOT / "_proc").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and "show_doc(" in cell.source:
                found += 1
                assert any("text/markdown" in o.get("data", {}) for o in cell.outputs), f"{path.name}: {cell.source}"
                assert not [o for o in cell.outputs if o.output_type == "error" or "Traceback" in str(o)], f"{path.name}: {cell.source}"
    assert found > 80


@pytest.fixture(scope="module")
def pages(site):
    "What stands in every page"
    return {p: Seen(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}


def test_no_link_leads_nowhere(pages):
    assert len(pages) > 100
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"https?:|mailto:", link): continue
            name, _, anchor = link.partition("#")
            place = (path.parent / name).resolve() if name else path
            assert place in pages or place.exists(), f"{path.name} links to {link}"
            if anchor and place in pages: assert anchor in pages[place].ids, f"{path.name} links to {link}, and no such heading is there"


def test_nothing_is_fetched_from_elsewhere(pages):
    for path, page in pages.items():
        assert not page.twice, f"{path.name} has two {page.twice[0]}"
        for name in page.fetched:
            assert name.startswith("data:") or (path.parent / name).exists(), f"{path.name} fetches {name}"
        for picture in page.pictures: assert picture.get("alt", "").strip(), f"{path.name}: {picture['src']} has no description"


def test_pages_are_light(site, pages):
    weights = {p.name: p.stat().st_size for p in [*pages, site / "words.js", site / "book.css", site / "book.js"]}
    assert max(weights[p.name] for p in pages) < 250e3 and weights["words.js"] < 1.2e6 and weights["book.css"] + weights["book.js"] < 40e3, weights


def test_the_search_knows_every_page(site, pages):
    text = (site / "words.js").read_text(encoding="utf-8")
    words = json.loads(text.removeprefix("window.words=").rstrip(";"))
    assert {p for p, _ in words["pages"]} == {p.relative_to(site).as_posix() for p in pages}
    assert all(anchor in pages[site / words["pages"][i][0]].ids for i, anchor, _, _ in words["parts"] if anchor)
    assert {i for i, *_ in words["parts"]} == set(range(len(pages)))


def first_needs(source, known):
    "Names that running `source` needs and does not make itself; IPython's own lines are left out"
    def tables(t):
        yield t
        for child in t.get_children():
            if child.get_name() in ("listcomp", "genexpr", "setcomp", "dictcomp"): yield from tables(child)
    top = symtable.symtable(source, "cell", "exec")
    made = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    asked = {s.get_name() for t in tables(top) for s in t.get_symbols() if s.is_referenced() and (t is top or s.is_global())}
    return asked - made - known, made


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("[0-9]*.ipynb")), ids=lambda p: p.stem)
def test_cells_that_the_site_runs_need_no_others(path):
    "nbdev_docs runs the cells of a chapter that export or import anything, and no others"
    known = set(dir(builtins)) | {"display", "get_ipython", "__name__", "__spec__", "__doc__"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code": continue
        source = "\n".join("pass" if line.lstrip()[:1] in "!%" and line.strip() else line for line in cell.source.splitlines())
        try: tree = ast.parse(source)
        except SyntaxError: continue
        if re.search(r"^#\| *eval: *false", source, re.M): continue
        if re.match(r"#\| *export", source) or any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree)):
            needs, made = first_needs(source, known)
            assert not needs, f"{path.name}: this cell needs {needs}:\n{source}"
            known |= made


def test_no_reference_is_unresolved():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        for name in re.findall(r"@((?:fig|tbl|sec)-[\w-]+)", text): assert f"#{name}" in text, f"{path.name}: @{name}"


def test_readme_is_the_index():
    text, pictures = tool("readme").readme()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run: make readme"
    for name, data in pictures.items(): assert (ROOT / name).read_bytes() == data, "run: make readme"
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text): assert (ROOT / link).exists(), link
