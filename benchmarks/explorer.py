"""The one-file explorer and the JupyterLab explorer in a real browser: python benchmarks/explorer.py [images] [points] [lab]

First paint and size for 5000 procedural photographs; main-thread CPU milliseconds and wall milliseconds per step of panning and zooming.
Each step is one event and two frames (in bokeh, panning moves the range as its tool does, because a busy machine takes a slow drag for a long press); the CPU time is that of the browser's main thread (DevTools metric TaskDuration in thread ticks), the wall time includes drawing.
Writes explorer.json beside this file. `lab` starts a JupyterLab of its own in a temporary folder."""
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from planetlab.explore import RunView
from planetlab.explorer_page import write_explorer
from planetlab.worlds.rover import rover_images

OUT, STEPS = Path(__file__).with_suffix(".json"), 6
ARGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WHEEL = """([x, y, d]) => { let e = document.elementFromPoint(x, y); while (e.shadowRoot && e.shadowRoot.elementFromPoint(x, y) !== e && e.shadowRoot.elementFromPoint(x, y)) e = e.shadowRoot.elementFromPoint(x, y);
  e.dispatchEvent(new WheelEvent("wheel", {deltaY: d, clientX: x, clientY: y, bubbles: true, composed: true, cancelable: true})); }"""
RENDERER = """() => { const g = document.createElement("canvas").getContext("webgl2"), e = g && g.getExtension("WEBGL_debug_renderer_info"); return e ? g.getParameter(e.UNMASKED_RENDERER_WEBGL) : "none"; }"""
POINTS = """rng = np.random.default_rng(0)
c = rng.integers(0, 8, n)
m = rng.normal(0, 4, (8, 2))
table = pd.DataFrame({"id": np.arange(n).astype(str), "cluster": c, "map_x": m[c, 0] + rng.normal(0, 1, n), "map_y": m[c, 1] + rng.normal(0, 1, n)})
"""


def points_of(n):
    names = {"np": np, "pd": pd, "n": n}
    exec(POINTS, names)
    return RunView(names["table"], {})


def steps(page, box, wheel, shift=None):
    "CPU and wall ms of the main thread per event, median of the wall"
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})
    def busy(): return next(m["value"] for m in client.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    frame = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.mouse.move(x, y)
    if not (wheel or shift): page.mouse.down()
    before, wall = busy(), []
    for i in range(STEPS):
        start = time.perf_counter()
        if wheel: page.evaluate(WHEEL, [x, y, -60 if i % 2 else 60])
        elif shift: page.evaluate(shift, i + 1)
        else: page.mouse.move(x + 3 * (i + 1), y + 2 * (i + 1))
        page.evaluate(frame)
        wall.append(1e3 * (time.perf_counter() - start))
        if sum(wall) > 60e3: break # a software renderer takes its time
    spent = 1e3 * (busy() - before) / len(wall)
    if not (wheel or shift): page.mouse.up()
    return {"main thread, CPU ms": round(spent, 1), "wall ms, median": round(float(np.median(wall)), 1), "steps": len(wall)}


def opened(browser, path):
    "The page, what it cost to open, and to move"
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    start = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=300_000)
    ready = time.perf_counter() - start
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)")
    row = {"size, MB": round(path.stat().st_size / 1e6, 2), "first paint, s": round(paint[0] / 1e3, 2) if paint else None, "all drawn and ready, s": round(ready, 2)}
    box = page.locator("#latent-map").bounding_box()
    row["zoom"] = steps(page, box, True)
    row["pan"] = steps(page, box, False, "k => { const f = Bokeh.documents[0].get_model_by_name('latents'), r = f.x_range, d = 0.01 * (r.end - r.start) * k; r.setv({start: r.start + d, end: r.end + d}); }")
    page.close()
    return row


def images(browser):
    "Five thousand photographs"
    with tempfile.TemporaryDirectory() as tmp:
        photos, _ = rover_images(5000, np.random.default_rng(0), 64)
        view = points_of(5000)._replace(chips={"image": photos.transpose(0, 2, 3, 1)}, z=np.random.default_rng(1).normal(size=(5000, 32)).astype("float32"))
        start = time.process_time()
        write_explorer(Path(tmp) / "images.html", view, "5000 procedural photographs")
        yield "5000 images", {"written in, CPU s": round(time.process_time() - start, 1), **opened(browser, Path(tmp) / "images.html")}


def points(browser):
    "Points without pictures"
    with tempfile.TemporaryDirectory() as tmp:
        for n in (50_000, 1_000_000):
            write_explorer(Path(tmp) / "points.html", points_of(n), f"{n} points")
            yield f"{n} points, bokeh", opened(browser, Path(tmp) / "points.html")


def lab(browser):
    "The same in JupyterLab"
    with tempfile.TemporaryDirectory() as tmp:
        server = subprocess.Popen([Path(sys.executable).parent / "jupyter", "lab", "--no-browser", "--port=8979", "--IdentityProvider.token=x", "--allow-root", f"--ServerApp.root_dir={tmp}"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "JUPYTER_CONFIG_DIR": tmp})
        try:
            for _ in range(120):
                try: urllib.request.urlopen("http://127.0.0.1:8979/api?token=x").read()
                except OSError: time.sleep(1)
                else: break
            for n in (50_000, 1_000_000):
                code = f"import numpy as np, pandas as pd\nfrom planetlab.explore import RunView\nfrom planetlab.explorer import explore\nn = {n}\n{POINTS}explore(RunView(table, {{}})).box"
                nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), f"{tmp}/n{n}.ipynb")
                page = browser.new_page(viewport={"width": 1280, "height": 1100})
                page.goto(f"http://127.0.0.1:8979/lab/tree/n{n}.ipynb?token=x&reset", timeout=120_000)
                page.wait_for_selector(".jp-CodeCell .cm-content", timeout=120_000)
                page.wait_for_timeout(8000)
                start = time.perf_counter()
                page.locator(".jp-CodeCell .cm-content").first.click()
                page.keyboard.press("Control+Enter")
                page.wait_for_function("[...document.querySelectorAll('.jp-OutputArea canvas')].some(c => c.clientWidth > 100)", timeout=300_000)
                page.wait_for_timeout(3000)
                ready, canvas = time.perf_counter() - start, page.evaluate("(() => { const c = [...document.querySelectorAll('.jp-OutputArea canvas')].find(c => c.clientWidth > 100); c.scrollIntoView({block: 'center'}); const b = c.getBoundingClientRect(); return {x: b.x, y: b.y, width: b.width, height: b.height}; })()")
                yield f"{n} points, jupyter-scatter", {"cell to picture, s": round(ready, 1), "zoom": steps(page, canvas, True), "pan": steps(page, canvas, False)}
                page.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    asked = sys.argv[1:] or ["images", "points", "lab"]
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=ARGS)
        page = browser.new_page()
        found["machine"] = {"renderer": page.evaluate(RENDERER), "browser": f"chromium {browser.version}", "cpus": os.cpu_count(), "platform": platform.machine(), "load": round(os.getloadavg()[0], 1)}
        page.close()
        for part in (p for p in (images, points, lab) if p.__name__ in asked):
            for name, row in part(browser):
                found[name] = row
                print(name, row, flush=True)
                OUT.write_text(json.dumps(found, indent=1) + "\n")
        browser.close()
