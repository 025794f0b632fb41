"The site, a report and JupyterLab in a real browser, with the network cut"
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CONTRAST, ROOT

PAGES = ("index.html", "runs.html", "sizes.html", "guides/gallery.html", "guides/glossary.html", "pipelines/venus.html", "stories/bad_input.html")


@pytest.fixture
def visit(browser):
    "Opens a file as a reader without network does; whatever goes wrong in the page fails the test at its end"
    wrong, contexts = [], []

    def go(path, width=1280, dark=False):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
        page.on("requestfailed", lambda r: wrong.append(f"missing: {r.url}") if "ABORTED" not in str(r.failure) else None) # aborted: the page was left
        page.on("request", lambda r: wrong.append(f"foreign: {r.url}") if not r.url.startswith(("file:", "data:", "blob:")) else None)
        page.goto(Path(path).as_uri())
        return page
    yield go
    for c in contexts: c.close()
    assert not wrong, wrong[:5]


def pictures_missing(page):
    "Every picture fetched, also those out of view"
    return page.evaluate("""async () => { for (const i of document.images) i.loading = 'eager';
        await Promise.all([...document.images].map(i => i.decode().catch(() => 0)));
        return [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80)) }""")


WIDE = "document.documentElement.scrollWidth - innerWidth"
UNNAMED = """() => [...document.querySelectorAll('img, input, button, a, nav, svg')].filter(e => e.getClientRects().length &&
  !(e.alt || e.ariaLabel || e.textContent.trim() || e.closest('[role=img]') || e.title)).map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("path", PAGES)
def test_a_page_reads_on_a_phone_and_on_a_desk(site, visit, path):
    for width, dark in ((390, True), (1280, False)):
        page = visit(site / path, width, dark)
        assert page.evaluate(WIDE) <= 0, f"{path} scrolls sideways at {width} px"
        assert not page.evaluate(CONTRAST) and not page.evaluate(UNNAMED)
    assert not pictures_missing(page)


def test_every_page_opens_without_a_word(site, visit):
    "One tab, page after page: nothing missing, nothing foreign, nothing wider than a phone"
    wide = []
    page = visit(site / "index.html", 390)
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri(), wait_until="load")
        if page.evaluate(WIDE) > 0: wide.append(path.name)
    assert not wide


def test_search_finds_and_leads_there(site, visit):
    page = visit(site / "pipelines" / "venus.html")
    page.keyboard.press("/")
    page.keyboard.type("judge")
    page.wait_for_selector("#page-hits a")
    assert page.locator("#page-hits a").first.inner_text() == "Agreement: judge" and "best places" in page.locator("#page-said").inner_text()
    assert page.locator("#page-hits mark").first.inner_text().lower() == "judge"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/agreement.html#judge")
    page.keyboard.press("/")
    page.keyboard.type("near copies")
    page.wait_for_selector("#page-hits a")
    assert page.locator("#page-hits a").count() > 2
    page.keyboard.press("Escape")
    assert page.locator("#page-hits a").count() == 0
    page.locator("#page-search").fill("xyzzy <img src=x onerror=alert(1)>")
    assert "Nothing found" in page.locator("#page-said").inner_text()


def test_the_keyboard_reaches_everything(site, visit):
    page = visit(site / "runs.html", 390)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    seen = []
    for _ in range(6):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", seen
    assert {"planetlab", "page-menu", "page-search"} <= set(seen)
    assert not page.locator("nav.book").is_visible()
    page.locator("#page-menu").focus()
    page.keyboard.press("Enter")
    assert page.locator("nav.book a[aria-current]").is_visible() and page.locator("#page-menu").get_attribute("aria-expanded") == "true"


def test_the_sidebar_holds_the_whole_book(site, visit):
    page = visit(site / "index.html")
    listed = set(page.evaluate("[...document.querySelectorAll('nav.book a')].map(a => a.href).filter(h => !h.includes('#'))"))
    assert listed == {p.as_uri() for p in site.rglob("*.html")}


def test_a_report_opens_with_its_result(smoke, visit):
    page = visit(smoke / "venus.html", 390, dark=True)
    heads = page.locator("h2").all_inner_texts()
    assert heads[:3] == ["Result", "Caveats", "Method"] and heads[-1].startswith("Ours, the seed")
    assert "ARI" in page.locator(".result").inner_text() and "smoke run" in page.locator("li").first.inner_text()
    assert page.locator("figure img").count() == 1 and page.locator("table.words thead th").all_inner_texts()[-1] == "protocol"
    assert page.evaluate(WIDE) <= 0 and not page.evaluate(CONTRAST) and not page.evaluate(UNNAMED) and not pictures_missing(page)
    page.emulate_media(media="print", color_scheme="light")
    assert not page.evaluate(CONTRAST) and page.pdf(format="A4")[:4] == b"%PDF"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_pipeline_runs_in_jupyterlab(browser, tmp_path):
    "As a person does it: open the notebook, Run All Cells, and see its product"
    pytest.importorskip("jupyterlab", reason="no JupyterLab: pip install planetlab[lab]")
    from planetlab.runs import find_pipeline, read_preset
    notebook = json.loads(find_pipeline("rover_dataset").read_text())
    cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    given = {**read_preset(find_pipeline("rover_dataset"), "rover_dataset_smoke"), "n_frames": 60, "out_dir": str(tmp_path / "run")}
    cell["source"] = "".join(cell["source"]) + "\n" + "\n".join(f"{k} = {v!r}" for k, v in given.items())
    for c in notebook["cells"]: c.pop("outputs", None) if c["cell_type"] != "code" else c.update(outputs=[])
    (tmp_path / "run.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root", "--IdentityProvider.token=", "--ServerApp.password=",
                               f"--ServerApp.root_dir={tmp_path}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url="], env={**os.environ, "PYTHONPATH": str(ROOT)},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            with socket.socket() as s:
                if not s.connect_ex(("127.0.0.1", port)): break
            time.sleep(0.25)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/lab/tree/run.ipynb", timeout=120_000)
        page.get_by_text("| Idle").wait_for(timeout=120_000) # what is run before the kernel is there is not run
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        shown, error = page.get_by_text(re.compile(r"\d+ of \d+ frames kept in \d")), page.locator("[data-mime-type='application/vnd.jupyter.error']")
        shown.or_(error).locator("visible=true").last.wait_for(timeout=240_000)
        assert error.count() == 0, error.first.inner_text()[-400:]
        assert "frames kept" in json.loads((tmp_path / "run" / "metrics.json").read_text())["summary"] and (tmp_path / "run" / "counts.png").exists()
        page.close()
    finally:
        server.terminate()
        server.wait(20)
