"Write README.md from nbs/index.ipynb: its prose, its code, its stored pictures"
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
PICTURES = "index_files"


def readme() -> tuple[str, dict[str, bytes]]: # Text, and pictures by path seen from the top
    "What README.md and its pictures should be"
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r"#\| *hide", c.source)]
    nb.metadata["language_info"] = {"name": "python"}
    names = {"ExtractOutputPreprocessor": {"output_filename_template": PICTURES + "/{cell_index}_{index}{extension}"}}
    text, resources = MarkdownExporter(config=Config(names)).from_notebook_node(nb)
    text = re.sub(r"\]\((?!https?:|index_files/|#)([^)]+\.ipynb)\)", r"](nbs/\1)", text)
    text = re.sub(r"!\[(?:jpe?g|png)\]", "![A procedural Venus]", text)
    return f"<!-- Generated from nbs/index.ipynb by `make readme`; edit that. -->\n\n{text.strip()}\n", resources["outputs"]


if __name__ == "__main__":
    text, pictures = readme()
    (ROOT / PICTURES).mkdir(exist_ok=True)
    for old in (ROOT / PICTURES).iterdir(): old.unlink()
    for name, data in pictures.items(): (ROOT / name).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
