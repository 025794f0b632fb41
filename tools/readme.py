"Write README.md from nbs/index.ipynb: its prose, its code, its stored pictures"
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

from planetlab.report import figure_text

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
    def said(m: re.Match) -> str: # What the cell's title or the text before it says of the picture
        at = int(m[1])
        before = next((c.source for c in reversed(nb.cells[:at]) if c.cell_type == "markdown"), "")
        return f"![{figure_text(nb.cells[at].source, before)}]({PICTURES}/{m[1]}_"
    text = re.sub(rf"!\[(?:jpe?g|png)\]\({PICTURES}/(\d+)_", said, text)
    return f"<!-- Generated from nbs/index.ipynb by `make readme`; edit that. -->\n\n{text.strip()}\n", resources["outputs"]


if __name__ == "__main__":
    text, pictures = readme()
    (ROOT / PICTURES).mkdir(exist_ok=True)
    for old in (ROOT / PICTURES).iterdir(): old.unlink()
    for name, data in pictures.items(): (ROOT / name).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
