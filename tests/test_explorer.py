"Labels with a past, maps without seams, and the one-file explorer in a real browser without a network"
import io
import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from conftest import CONTRAST
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from planetlab.bodies import MARS, MOON, VENUS, distance_m
from planetlab.core import BadInput
from planetlab.desk import Desk, check_view, more_like, place_rows
from planetlab.explore import RunView
from planetlab.explorer import explore
from planetlab.explorer_page import make_atlas, write_explorer
from planetlab.footprint_map import choose_charts, footprint_centres, footprint_corners, graticule, project, project_outlines
from planetlab.grid import footprint, grid_around
from planetlab.labelling import clean_name, halves, label_table, merge_labels, name_rows, read_labels, redo, split_label, spread_labels, start_labels, undo, write_labels
from planetlab.search import build_index, like

IDS = [f"r{i}" for i in range(12)]
STEPS = st.lists(st.tuples(st.sets(st.integers(0, 11), min_size=1), st.sampled_from(["dunes", "ripples", "", "a, \"b\""]), st.sampled_from("nnnmsu")), max_size=8)


def after(steps):
    "Labels after some steps, and the codes and names after each"
    labels, seen = start_labels(IDS), []
    for rows, name, kind in steps:
        used = sorted(set(labels.of_rows) - {""})
        if kind == "m" and used and name: labels = merge_labels(labels, used[:2], name)
        elif kind == "s" and used:
            n = (labels.of_rows == used[0]).sum()
            labels = split_label(labels, used[0], np.arange(n) % 2)
        elif kind == "u": labels = undo(labels)
        else: labels = name_rows(labels, list(rows), name)
        seen.append(labels)
    return labels, seen


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_every_step_can_be_taken_back_and_done_again(steps):
    labels, _ = after(steps)
    back = labels
    while back.done:
        again = redo(undo(back))
        assert (again.codes == back.codes).all() and len(again.done) == len(back.done)
        back = undo(back)
    assert (back.codes == -1).all()
    for _ in labels.done: back = redo(back)
    assert (back.codes == labels.codes).all() and len(back.undone) == len(labels.undone)


@settings(deadline=None, max_examples=40)
@given(steps=STEPS)
def test_values_are_never_changed_and_come_back_from_files(steps, tmp_path_factory):
    labels, seen = after(steps)
    names = [s.of_rows.tolist() for s in seen]
    after(steps)
    assert names == [s.of_rows.tolist() for s in seen]
    if (labels.codes < 0).all(): return
    for kind in ("csv", "parquet"):
        path = tmp_path_factory.getbasetemp() / f"labels.{kind}"
        write_labels(path, labels)
        assert read_labels(path, IDS[::-1]).of_rows.tolist() == labels.of_rows[::-1].tolist()


def test_a_step_keeps_only_the_rows_it_touched():
    labels = start_labels([str(i) for i in range(10_000)])
    for i in range(50): labels = name_rows(labels, [i], "a")
    assert sum(c.rows.nbytes + c.before.nbytes + c.after.nbytes for c in labels.done) < 50 * 20


@settings(deadline=None, max_examples=40)
@given(st.floats(-180, 180), st.floats(-90, 90), st.sampled_from([MARS, MOON, VENUS]), st.floats(1e4, 8e5))
def test_a_footprint_is_one_ring_of_the_right_size_anywhere(lon, lat, body, wide):
    square = footprint(grid_around(body, lon, lat, wide, 16), body)
    (x,), (y,) = footprint_centres([square], body)
    assert distance_m(body, x, y, lon, lat) < 0.02 * wide + 1
    (chart,) = choose_charts(*footprint_corners([square]), body)
    ((ring,),) = project_outlines(chart, [square])
    assert shapely.Polygon(ring).area == pytest.approx(wide**2, rel=0.08)
    assert np.isfinite(project(chart, [x], [y])).all() and graticule(chart).lines


def test_the_whole_body_cuts_at_its_edge_and_nowhere_else():
    squares = [footprint(grid_around(MARS, lon, lat, 6e5, 16), MARS) for lon, lat in ((0, 10), (90, 0), (179, -5), (30, -88))]
    whole, south = choose_charts(*footprint_corners(squares), MARS)
    for centre in (0.0, 90.0, 175.0):
        for shape, rings in zip(squares, project_outlines(whole._replace(lon=centre), squares)):
            assert all(np.abs(r).max() <= np.pi * MARS.equatorial_m * 1.001 for r in rings)
            if shape is not squares[3]: assert sum(shapely.Polygon(r).area for r in rings) == pytest.approx(3.6e11, rel=0.03) # near the equator the map is true
    assert south.name == "south pole" and [len(r) for r in project_outlines(south, squares)] == [0, 0, 0, 1]


# ---- the page
def blobs(n=240):
    "Four groups at the corners, with places across 180 degrees, and words that try to break out"
    rng = np.random.default_rng(5)
    cluster = np.arange(n) % 4
    corner = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])[cluster]
    xy = 5 * corner + rng.normal(0, 0.5, (n, 2))
    z = np.c_[xy + rng.normal(0, 0.2, (n, 2)), rng.normal(0, 0.3, (n, 3))].astype("float32")
    ids = [f"id{i:03}" for i in range(n)]
    ids[7], ids[11] = '</script><img src=x onerror="document.title=1">', 'comma, "quote"\u2028'
    table = pd.DataFrame({"id": ids, "cluster": cluster, "kind": np.array(["dune", "rock", "<b>sun</b>", "wheel"])[cluster], "sequence": np.arange(n) // 4, "height": rng.normal(size=n)})
    table["map_x"], table["map_y"] = xy.T
    shade = np.broadcast_to(np.arange(n, dtype="uint8")[:, None, None], (n, 40, 40))
    places = gpd.GeoDataFrame({"id": ids}, geometry=[footprint(grid_around(MARS, 178 + 4 * rng.random(), 3 * rng.random(), 2e4, 8), MARS, 2) for _ in ids], crs=MARS.lonlat_crs.to_wkt())
    return RunView(table, {"sar": shade, "topo": 255 - shade}, places, z)


@pytest.fixture(scope="module")
def view(): return blobs()


@pytest.fixture(scope="module")
def page_file(view, tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    write_explorer(path, view, "Four <blobs> & more", "Made up.")
    return path


def test_thumbnails_keep_their_order_and_their_room(view):
    atlas = make_atlas(view.chips, 1e5)
    assert sum(map(len, atlas.sheets)) <= 1e5 and atlas.width == 2 * atlas.height
    sheet = np.asarray(Image.open(io.BytesIO(atlas.sheets[0])).convert("L"), int)
    for i in (0, 31, 32, 239):
        r, c = i // 32 * atlas.height, i % 32 * atlas.width
        left, right = (sheet[r + 4:r + atlas.height - 4, c + s + 4:c + s + atlas.height - 4].mean() for s in (0, atlas.height))
        assert abs(left - i) < 4 and abs(right - (255 - i)) < 4
    many = {"sar": np.broadcast_to(view.chips["sar"][:1], (2500, 40, 40))}
    assert len(make_atlas(many).sheets) == 3 and make_atlas(many, 10) is None


def test_the_file_is_whole_and_asks_nobody(page_file):
    text = page_file.read_text()
    assert re.search(r"default-src 'none'", text) and not re.search(r"<script[^>]+src=|<link|<img[^>]+src=[\"']?http|@import", text.split('id="about"')[0])
    assert "<blobs>" not in text and "</script><img" not in text and list(page_file.parent.iterdir()) == [page_file]


def test_what_does_not_fit_together_is_refused(view, tmp_path):
    for bad, message in ((view._replace(table=view.table.drop(columns="map_x")), "map_x"), (view._replace(z=view.z[:-1]), "239"), (view._replace(z=view.z * np.nan), "NaN"),
                         (view._replace(table=view.table.assign(id="a")), "1 different ids")):
        with pytest.raises(BadInput, match=message): write_explorer(tmp_path / "x.html", bad, "x")
        with pytest.raises(BadInput, match=message): explore(bad)
    assert not list(tmp_path.iterdir())


def test_a_head_is_not_judged_on_folds_that_cannot_be():
    "Four groups, one name in each half: a fold may hold all of one name, and then nobody can say how good the head is"
    groups = np.repeat(["a1", "a2", "b1", "b2"], [10, 5, 9, 8])
    labels = start_labels([f"r{i}" for i in range(32)])
    for name in ("a", "b"): labels = name_rows(labels, np.flatnonzero(np.char.startswith(groups, name)), name)
    z = np.where(np.char.startswith(groups, "a"), 1.0, -1.0)[:, None] + np.random.default_rng(0).normal(0, 0.1, (32, 2))
    said = spread_labels(labels, z, groups)
    assert said.accuracy == 1 and (said.codes == labels.codes).all()
    alone = spread_labels(labels, z, np.where(np.char.startswith(groups, "a"), "a", groups)) # all of one name is one group
    assert np.isnan(alone.accuracy) and (alone.codes == labels.codes).all()


def test_a_row_with_two_labels_is_no_label(tmp_path):
    (tmp_path / "labels.csv").write_text("id,label\nr0,sand\nr0,sand\nr1,rock\n")
    assert read_labels(tmp_path / "labels.csv", IDS).of_rows.tolist()[:3] == ["sand", "rock", ""]
    (tmp_path / "labels.csv").write_text("id,label\nr0,sand\nr0,rock\n")
    with pytest.raises(BadInput, match="'r0' for one; keep one line"): read_labels(tmp_path / "labels.csv", IDS)


def test_more_like_answers_with_other_groups_only():
    z = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
    table = pd.DataFrame({"id": [f"r{i}" for i in range(60)], "map_x": z[:, 0], "map_y": z[:, 1], "group": np.arange(60) // 10})
    desk = Desk(RunView(table, {}, None, z), start_labels(table.id))
    desk.rows = np.array([3, 14, 15])
    assert more_like(desk, 12) == "12 most like 3 selected, of another group" and set(desk.rows // 10) <= {2, 3, 4, 5}
    near = np.linalg.norm(z[:, None] - z[[3, 14, 15]], axis=2).min(1)
    near[:20] = np.inf
    assert set(desk.rows) == set(near.argsort()[:12])


# ---- in a browser
@pytest.fixture
def context(browser):
    "A browser that knows nothing yet"
    made = browser.new_context(viewport={"width": 640, "height": 900}, offline=True, accept_downloads=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def opened(browser, page_file):
    "The page, offline; what went wrong is in `page.wrong`"
    context = browser.new_context(viewport={"width": 640, "height": 700}, offline=True, accept_downloads=True)
    page = context.new_page()
    page.wrong, page.late = [], pytest.importorskip("playwright.sync_api").TimeoutError
    context.route(re.compile("^https?:"), lambda route: (page.wrong.append(f"asked for {route.request.url}"), route.abort()))
    page.on("console", lambda m: page.wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: page.wrong.append(str(e)))
    page.on("requestfailed", lambda r: page.wrong.append(f"missing {r.url[:80]}"))
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    yield page
    context.close()


@pytest.fixture
def page(opened):
    "Nothing named, nothing selected, and no error at the end"
    opened.evaluate("""() => { while (explorer.labels.done.length) document.getElementById("undo").click(); explorer.select([]);
                       for (const id of ["search", "name"]) document.getElementById(id).value = "";
                       const by = document.getElementById("by"); by.value = "cluster"; by.dispatchEvent(new Event("change")); }""")
    yield opened
    assert opened.wrong == [] and opened.title() == "Four <blobs> & more"


def lasso(page, left, low, right, high, plot="#latent-map"):
    "Draw around a part of a map; fractions of it from the left and from the top"
    page.locator(plot).scroll_into_view_if_needed()
    b = page.locator(plot).bounding_box()
    at = [(b["x"] + b["width"] * x, b["y"] + b["height"] * y) for x, y in ((left, low), (right, low), (right, high), (left, high), (left, low))]
    for attempt in range(5): # on a busy machine the first move comes late, and bokeh takes it for a long press
        page.mouse.move(*at[0])
        page.mouse.down()
        for p in at[1:]: page.mouse.move(*p)
        page.mouse.up()
        try: return page.wait_for_function("explorer.selected().length > 0", timeout=4000)
        except page.late: continue
    raise AssertionError("five lassos, and nothing was ever selected")


def selected(page): return sorted(page.evaluate("Array.from(explorer.selected())"))
def choose(page, rows): page.evaluate("rows => explorer.select(rows)", [int(r) for r in rows])


def named(page, rows, name):
    choose(page, rows)
    page.fill("#name", name)
    page.click("#name-selected")


def of_rows(page): return page.evaluate("Array.from(explorer.labels.codes, c => c < 0 ? '' : explorer.labels.names[c])")


def exported(page, button, path):
    with page.expect_download() as got: page.click(button)
    got.value.save_as(path)
    return path


def test_lasso_name_export(page, view, tmp_path):
    lasso(page, 0.5, 0.02, 0.93, 0.48)
    right = np.flatnonzero(view.table.cluster == 3).tolist()
    assert selected(page) == right
    assert page.locator("#sheet button").count() == 60 and page.inner_text("#sheet-said") == "Selected images: 60"
    page.fill("#name", 'big,  "wheel" ')
    page.press("#name", "Enter")
    choose(page, [])
    lasso(page, 0.02, 0.02, 0.48, 0.48)
    page.fill("#name", "sun")
    page.click("#name-selected")
    truth = pd.Series("", view.table.id)
    truth.iloc[right], truth.iloc[np.flatnonzero(view.table.cluster == 2)] = 'big, "wheel"', "sun"
    got = pd.read_csv(exported(page, "#csv", tmp_path / "labels.csv"), dtype=str, keep_default_na=False, lineterminator="\n")
    got.columns = [c.strip() for c in got.columns]
    want = view.table[truth.to_numpy() != ""]
    assert got.id.tolist() == want.id.tolist() and got.label.tolist() == truth[truth != ""].tolist()
    assert got.kind.tolist() == want.kind.tolist() and got.cluster.tolist() == want.cluster.astype(str).tolist()
    for suffix in ("csv", "json"):
        back = read_labels(exported(page, f"#{suffix}", tmp_path / f"labels.{suffix}"), view.table.id)
        assert back.of_rows.tolist() == truth.tolist()
    while page.is_enabled("#undo"): page.click("#undo")
    assert set(of_rows(page)) == {""}
    page.set_input_files("#import", tmp_path / "labels.csv")
    page.wait_for_function("explorer.labels.done.length === 1")
    assert of_rows(page) == truth.tolist()
    (tmp_path / "other.csv").write_text("id,label\nnobody,sand\n")
    page.set_input_files("#import", tmp_path / "other.csv")
    page.wait_for_function("document.getElementById('said').textContent.includes('another run')")


def test_the_same_steps_as_in_python(page, view):
    labels = start_labels(view.table.id)
    for rows, name in ((range(0, 240, 4), "a"), (range(1, 240, 4), "b"), (range(2, 240, 8), "c")):
        named(page, rows, name)
        labels = name_rows(labels, rows, name)
    page.select_option("#by", "label")
    for g in ("a", "b"): page.check(f'[aria-label="tick {g}"]')
    page.fill("#name", "ab")
    page.click("#name-ticked")
    labels = merge_labels(labels, ["a", "b"], "ab")
    assert of_rows(page) == labels.of_rows.tolist()
    page.check('[aria-label="tick ab"]')
    page.click("#split")
    labels = split_label(labels, "ab", halves(view.z[labels.of_rows == "ab"]))
    assert [set(view.table.cluster[labels.of_rows == f"ab {k}"]) for k in (1, 2)] in ([{0}, {1}], [{1}, {0}])
    assert len({*zip(of_rows(page), labels.of_rows)}) == 4 # the halves may have changed places: they are equally large
    for move in (undo, undo, redo):
        page.click(f"#{move.__name__}")
        labels = move(labels)
    assert of_rows(page) == labels.of_rows.tolist()


def test_search_likeness_and_head_agree_with_python(page, view):
    page.fill("#search", "<B>SUN")
    page.press("#search", "Enter")
    assert selected(page) == np.flatnonzero(view.table.cluster == 2).tolist()
    choose(page, [8])
    page.click("#like")
    z = (view.z - view.z.mean(0)) / view.z.std(0)
    truth = like(build_index(z, view.table.sequence), [8], 24).rows[0]
    assert len(set(selected(page)) & set(truth)) >= 22 and 8 not in selected(page) # latents travel as one byte a number
    labels = start_labels(view.table.id)
    for rows, name in ((range(0, 40, 4), "west"), (range(1, 40, 4), "east"), (range(3, 40, 4), "north")):
        named(page, rows, name)
        labels = name_rows(labels, rows, name)
    page.click("#spread")
    truth, told = spread_labels(labels, view.z), page.evaluate("(() => { const h = explorer.head(); return [Array.from(h.codes, c => explorer.labels.names[c]), Array.from(h.p)]; })()")
    assert np.mean(np.array(told[0]) == np.array(labels.names)[truth.codes]) > 0.98 and np.abs(np.array(told[1]) - truth.p).mean() < 0.03
    page.fill("#least", "0.7")
    page.click("#accept")
    sure = truth.p > 0.75
    assert [labels.names[c] for c in truth.codes[sure & (labels.codes < 0)]] == np.array(of_rows(page))[sure & (labels.codes < 0)].tolist()
    page.click("#undo")
    assert of_rows(page) == labels.of_rows.tolist()


def test_both_maps_and_the_thumbnails_are_one_selection(page, view):
    lasso(page, 0.3, 0.1, 0.6, 0.9, "#body-map")
    some = selected(page)
    assert 5 < len(some) < 235 and page.evaluate("Bokeh.documents[0].get_model_by_name('outlines').data.xs.length") == len(some)
    lon, lat = footprint_centres(view.footprints.geometry, MARS)
    x = project(choose_charts(*footprint_corners(view.footprints.geometry), MARS)[0], lon, lat)[:, 0]
    assert np.ptp(x[some]) < np.ptp(x) * 0.8 # a band of neighbours, though it crosses 180 degrees
    choose(page, [239])
    shot = Image.open(io.BytesIO(page.locator("#sheet button").first.screenshot())).convert("L")
    w, h = shot.size
    assert abs(shot.getpixel((w // 4, h // 2)) - 239) < 6 and abs(shot.getpixel((3 * w // 4, h // 2)) - 16) < 6
    assert "height" in page.inner_text("#detail") and view.table.id[239] in page.inner_text("#detail")


def test_everything_by_keyboard(page, view):
    page.focus("#search")
    page.keyboard.type("wheel")
    page.keyboard.press("Enter")
    for _ in range(2): page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "name"
    page.keyboard.type("wheels")
    page.keyboard.press("Enter")
    assert set(np.array(of_rows(page))[(view.table.cluster == 3).to_numpy()]) == {"wheels"}
    page.focus("#sheet button")
    page.keyboard.press("Enter")
    assert view.table.id[3] in page.inner_text("#detail")
    page.keyboard.press("Control+z")
    assert set(of_rows(page)) == {""}
    page.keyboard.press("Escape")
    assert selected(page) == []
    bare = page.evaluate("""[...document.querySelectorAll("button, input, select, [role=img]")].filter(e => !e.closest(".bk-Figure") && e.offsetParent
        && !(e.textContent.trim() || e.getAttribute("aria-label") || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 80))""")
    assert bare == []


def test_readable_on_a_phone_in_light_and_dark(page):
    choose(page, [3])
    try:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert not page.evaluate(CONTRAST)
            page.wait_for_function("Bokeh.documents[0].get_model_by_name('latents').background_fill_color === getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()")
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_function("document.documentElement.scrollWidth <= 390")
    finally:
        page.set_viewport_size({"width": 640, "height": 700})
        page.emulate_media(color_scheme="light")


def test_labels_outlast_the_tab(opened):
    opened.evaluate("explorer.select([1, 2, 3])")
    opened.fill("#name", "kept")
    opened.click("#name-selected")
    opened.reload()
    opened.wait_for_selector("body[data-ready]", timeout=120_000)
    assert np.flatnonzero(np.array(of_rows(opened)) == "kept").tolist() == [1, 2, 3] and opened.wrong == []


def test_a_page_says_what_it_kept_and_takes_no_labels_of_another(context, view, tmp_path):
    def shown(name, view, **given):
        write_explorer(tmp_path / name, view, "One title", **given)
        page = context.new_page()
        page.goto((tmp_path / name).as_uri())
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        return page
    some = name_rows(start_labels(view.table.id), [5, 6], "shipped")
    shown("bare.html", view).close() # looking at it is no labelling
    page = shown("shipped.html", view, labels=some)
    assert of_rows(page) == some.of_rows.tolist()
    named(page, [1], "mine")
    page.reload()
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    assert of_rows(page)[1] == "mine" and "that this browser kept" in page.inner_text("#said")
    moved = view._replace(table=view.table.assign(map_x=view.table.map_x + 1))
    other = shown("other.html", moved, labels=some)
    assert of_rows(other) == some.of_rows.tolist()
    other.evaluate("void (Storage.prototype.setItem = () => { throw new Error('full'); })")
    named(other, [2], "lost?")
    assert "export before you close" in other.inner_text("#said")
    page.close(); other.close()


def test_numbers_arrive_whole_and_files_come_back(context, view, tmp_path):
    n = len(view.table)
    table = pd.concat([view.table] * 5, ignore_index=True).assign(id=[f"i{i}" for i in range(5 * n)], orbit=486_272_819 + np.arange(5 * n), depth=np.linspace(0, 1, 5 * n) + 137)
    table.loc[3, "map_y"] = np.nan
    write_explorer(tmp_path / "x.html", RunView(table, {}, None, np.tile(view.z, (5, 9))), "Numbers") # more latents than are kept
    page = context.new_page()
    page.goto((tmp_path / "x.html").as_uri())
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    page.fill("#search", "486272830")
    page.press("#search", "Enter")
    assert selected(page) == [11] and "486272830" in page.inner_text("#detail")
    named(page, [11, 12], "a")
    got = pd.read_csv(exported(page, "#csv", tmp_path / "l.csv"))
    assert got.orbit.tolist() == [486_272_830, 486_272_831] and np.allclose(got.depth, table.depth[11:13], atol=1e-4)
    (tmp_path / "odd.csv").write_text('id,label\ni20,"two\nlines"\ni21,a\u00a0b\ni22, \n', encoding="utf-8")
    page.set_input_files("#import", tmp_path / "odd.csv")
    page.wait_for_function("explorer.labels.done.length === 2")
    back = read_labels(exported(page, "#csv", tmp_path / "l.csv"), table.id)
    assert [back.of_row(i) for i in (20, 21, 22)] == ["two lines", "a b", ""]
    (tmp_path / "twice.csv").write_text("id,label\ni1,a\ni1,b\n")
    page.set_input_files("#import", tmp_path / "twice.csv")
    page.wait_for_function("document.getElementById('said').textContent.includes('two labels')")
    choose(page, range(100))
    page.click("#like")
    assert "first 50 of 100" in page.inner_text("#said")
    named(page, [0], "a 1")
    page.select_option("#by", "label")
    page.check('[aria-label="tick a"]')
    page.click("#split")
    assert {*of_rows(page)} >= {"a 1", "a 2", "a 3"} and of_rows(page).count("a 1") == 1
    page.locator("#groups button").first.click()
    page.locator("#sheet button").first.click()
    page.get_by_text("Select only this one").click()
    assert len(selected(page)) == 1
    page.close()


def test_what_does_not_fit_is_refused(view):
    desk = Desk(view, name_rows(start_labels(view.table.id), range(4), "dunes"))
    desk.rows = np.arange(3)
    for act in (lambda: desk.name(""), lambda: desk.merge(["0", "1"], " ")):
        with pytest.raises(BadInput, match="is no name"): act()
    twice = view._replace(footprints=pd.concat([view.footprints, view.footprints[:1]]))
    with pytest.raises(BadInput, match="came before"): place_rows(twice)
    with pytest.raises(BadInput, match=r"give \(N, H, W\)"): check_view(view._replace(chips={"a": np.zeros((len(view.table), 8, 8, 1), "uint8")}))
    assert clean_name("a\u00a0 b") == "a b"
    clusters = view.table.cluster.astype(float).where(view.table.cluster > 0)
    assert label_table(desk.labels, clusters).rows.tolist() == [4]
    wide = {f"p{k}": np.zeros((10, 128, 128), "uint8") for k in range(4)}
    assert make_atlas(wide).height < 128 # as wide as a WebP can be
    assert split_label(name_rows(desk.labels, [9], "dunes 1"), "dunes", [0, 1, 0, 1]).names == ("dunes", "dunes 1", "dunes 2", "dunes 3")
