"Keep the outputs of a finished run in its pipeline's notebook, for the site: keep.py RUN_FOLDER"
import sys
from pathlib import Path

import nbformat

from planetlab.core import read_json

folder = Path(sys.argv[1])
name = read_json(folder / "run.json")["identity"]["pipeline"]
path = Path(__file__).parents[1] / "nbs" / "pipelines" / f"{name}.ipynb"
page, executed = (nbformat.read(p, as_version=4) for p in (path, folder / f"{name}.ipynb"))
seen = {c.source: c.outputs for c in executed.cells if c.cell_type == "code"}
for cell in (c for c in page.cells if c.cell_type == "code"):
    if cell.source not in seen: sys.exit(f"{folder} ran another version of {name}; run it again:\n{cell.source}")
    cell.outputs = [o for o in seen[cell.source] if o.output_type != "stream" and "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
    for o in cell.outputs:
        if "execution_count" in o: o["execution_count"] = None
nbformat.write(page, path)
