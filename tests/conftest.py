"One finished smoke run and the real data, shared by the tests that need them"
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1") # two workers share two cores

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
DATA = next((p / "shared" / "data" for p in ROOT.parents if (p / "shared" / "data").is_dir()), Path("no real data"))
RASTERS = [DATA / "planetary_rasters" / f for f in (
    "AS15-M-0295_SML_geo.tif", "Lunar_LRO_LOLA_Shade_MAP2_90.0N20.0_LAMB.tif", "Mars_MGS_MOLA_ClrShade_MAP2_0.0N0.0_MERC.tif",
    "mars_topo_sh110_west_eqc.tif", "mars_topo_sh110_west_longlat.tif")]
PLANETLAB = Path(sys.executable).parent / "planetlab"
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
CONTRAST = """() => { // text that stands too little out from what is behind it, WCAG 2.1 AA
  const rgb = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const lum = c => c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.99) return c; } return [255, 255, 255]; };
  const poor = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; n = walker.nextNode();) {
    const e = n.parentElement;
    if (!n.data.trim() || e.closest('svg, script, style, [hidden], :disabled') || !e.getClientRects().length) continue;
    const s = getComputedStyle(e), px = parseFloat(s.fontSize), big = px >= 24 || (px >= 18.66 && s.fontWeight >= 700);
    const [a, b] = [lum(rgb(s.color)), lum(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (big ? 3 : 4.5)) poor.set(s.color + ' on ' + behind(e), n.data.trim().slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return [...poor].map(p => p.join(': '));
}"""


def command(*args, cwd, **kwargs):
    "The command line as a user types it, in any folder"
    return subprocess.run([PLANETLAB, *map(str, args)], cwd=cwd, capture_output=True, text=True, **kwargs)


def command_here(*args, cwd):
    "The same in this process, which has imported everything: exit code, stdout, stderr"
    from planetlab.cli import main
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["planetlab", *map(str, args)])
        patch.chdir(cwd)
        with pytest.raises(SystemExit) as left: main()
    return subprocess.CompletedProcess(args, left.value.code or 0, out.getvalue(), err.getvalue())


@pytest.fixture
def planetlab(tmp_path):
    return lambda *args, **kwargs: command(*args, **{"cwd": tmp_path, **kwargs})


@pytest.fixture(scope="module")
def browser():
    "Debian's Chromium, drawing in software"
    api = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: no Playwright; pip install planetlab[dev]")
    if CHROMIUM is None: pytest.skip("NO BROWSER TESTS: no Chromium on this machine; apt-get install chromium")
    with api.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"])
        yield found
        found.close()


def real(name):
    "A real file or folder of ../shared/data"
    if not (DATA / name).exists(): pytest.skip(f"real data absent: {Path(name).name} is not in ../shared/data")
    return DATA / name


def finished(pipeline, preset, out, command=command_here):
    "A run that nothing interrupted"
    done = command("run", pipeline, "-f", preset, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return out


def execute(preset, out, **given):
    "The cells of a notebook, here, with the parameters of a preset (PIPELINE_smoke) and some more"
    import matplotlib.pyplot as plt
    from nbformat import read

    from planetlab.runs import find_pipeline, parameters, read_preset, settle
    notebook = find_pipeline(preset.removesuffix("_smoke"))
    names = settle(parameters(notebook), read_preset(notebook, preset), given) | {"out_dir": str(out)}
    for cell in read(notebook, 4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []): exec(cell.source, names)
        plt.close("all")
    return json.loads((Path(out) / "metrics.json").read_text())


def shared(tmp_path_factory):
    "A folder of this run of the tests alone, for all its workers"
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "A run of the smoke preset that nothing interrupted"
    out = shared(tmp_path_factory) / "smoke" / "run"
    out.parent.mkdir(exist_ok=True)
    with FileLock(out.parent.with_suffix(".lock")): # the workers share one, made by the first to ask
        if not (out / "venus.html").exists(): finished("venus", "venus_smoke", out, command)
    return out


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The finished site, built once as a reader builds it"
    mark = shared(tmp_path_factory) / "site"
    with FileLock(mark.with_suffix(".lock")): # the workers share one, made by the first to ask
        if not mark.exists(): subprocess.run([sys.executable, "-P", "tools/site.py"], cwd=ROOT, check=True)
        mark.touch()
    return ROOT / "_docs"


@pytest.fixture(scope="session")
def jartool():
    "Real Magellan images with expert labels"
    return real("venus_jartool")


SLOW = ("test_rocks", "test_map_scene", "test_discover", "test_resume", "test_site", "test_browser", "test_pipelines", "test_package", "test_maps", "test_outputs", "test_blocks",
        "test_vectors", "test_calibrate", "test_predict", "test_representations")


def pytest_collection_modifyitems(items):
    "The longest files begin first, so that no worker waits for another at the end"
    items.sort(key=lambda i: SLOW.index(i.path.stem) if i.path.stem in SLOW else len(SLOW))
