"Records, names and feeds against what the services really sent, and against a service that means ill"
import copy
import csv
import gzip
import json
import re
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from planetlab.core import BadInput
from planetlab.download import FetchFailed
from planetlab.feeds import Patience, fetch_page, gather, read_page, tally
from planetlab.product_names import complete, disagreements, facts_of, format_name, parse_name, read_instrument, sol_of_clock
from planetlab.records import COLUMNS, Record, from_frame, from_row, safe_name, to_frame, to_row
from planetlab.sources import MARS_PHOTOS, Folder, PdsVolume, curiosity, manifest_2015, perseverance

HASTY = Patience(pause=lambda s: None)


def item(i=0, sol=900, **changes):
    "One element of `items`, as Curiosity's service spells it"
    id = f"NLB_{477390000 + i}EDR_F0440000NCAM00300M_"
    return {"id": i, "imageid": id, "sol": sol, "instrument": "NAV_LEFT_B", "url": f"http://mars.example/{id}.JPG", "https_url": f"https://mars.example/{id}.JPG",
            "date_taken": "2015-02-16T12:00:00.000Z", "date_received": "2015-02-17T12:00:00.000Z", "site": 44, "drive": "0", "spacecraft_clock": 477390000.5 + i,
            "mission": "msl", "subframe_rect": "(1,1,1024,1024)", "image_credit": "NASA/JPL-Caltech", "title": "", "description": "", "link": "", "is_thumbnail": False,
            "camera_vector": None, "camera_position": None, "camera_model_type": None, "camera_model_component_list": None, "xyz": None, "attitude": None, "scale_factor": 1,
            "created_at": "", "updated_at": "", "instrument_sort": 1, "sample_type_sort": 1,
            "extended": {"sample_type": "full", "lmst": "Sol-00900M12:00:00.000", "mast_az": "10", "mast_el": "-5", "filter_name": None, "url_list": None, "bucket": "", "contributor": ""}} | changes


def image(i=0, sol=905, **changes):
    "One element of `images`, as Perseverance's service spells it"
    id = f"NLF_{sol:04}_{747280000 + i:010}_123ECM_N0442062NCAM00502_01_295J02"
    return {"imageid": id, "sol": sol, "sample_type": "Full", "date_taken_utc": "2023-09-07T01:02:03.500", "date_taken_mars": f"Sol-{sol:05}M14:00:00.000", "date_received": "2023-09-07T09:00:00Z",
            "site": 44, "drive": "2062", "credit": "NASA", "title": "", "caption": "", "link": "", "json_link": "", "attitude": "",
            "camera": {"instrument": "NAVCAM_LEFT", "filter_name": "UNK", "camera_vector": "", "camera_position": "", "camera_model_type": "", "camera_model_component_list": ""},
            "image_files": {k: f"https://mars.example/{id}_{k}.jpg" for k in ("medium", "small", "full_res", "large")},
            "extended": {"mastAz": "78.8", "mastEl": "1.06", "sclk": f"{747280000 + i}.9", "dimension": "(1280,960)", "scaleFactor": "1", "xyz": "", "subframeRect": ""}} | changes


def client_of(answer): return httpx.Client(transport=httpx.MockTransport(answer))


def recorded(folder, name):
    "A recorded answer"
    path = real(f"rover_feeds/{folder}/{name}")
    return json.loads((gzip.open if path.suffix == ".gz" else open)(path).read())


# What the services really sent

def test_the_documented_record_of_curiosity():
    page = read_page(curiosity(), {"items": [recorded("quoted_records", "raw_image_items_msl_one_item.json")], "more": False, "total": 1, "page": 0, "per_page": 100})
    (r,) = page.records
    assert (r.mission, r.id, r.sol, r.camera, r.side, r.sample) == ("curiosity", "0001MR0000000010100001C00_DXXX", 1, "mastcam", "right", "full")
    assert (r.utc, r.received, r.credit, r.clock) == ("2012-08-07T04:52:33.000000Z", "2012-08-16T02:10:06.000000Z", "NASA/JPL-Caltech/MSSS", None)
    assert r.urls[0].startswith("https://mars.jpl.nasa.gov/") and len(r.urls) == 2
    assert [(p.kind, p.field) for p in page.problems] == [("missing field", "url")]


def test_the_documented_record_of_perseverance():
    page = read_page(perseverance(), {"images": [recorded("quoted_records", "rss_raw_images_mars2020_one_image.json")], "sol": 100, "total": 1})
    (r,) = page.records
    assert (r.mission, r.sol, r.camera, r.side, r.sample, r.site, r.drive) == ("perseverance", 100, "navcam", "left", "full", 4, 218)
    assert (r.clock, r.azimuth_deg, r.elevation_deg, r.width, r.height) == (675828717.752, 78.7995, 1.06137, 1280, 240)
    assert (r.utc, round(r.lmst_h, 3), r.colour, r.urls) == ("2021-06-01T14:14:37.984000Z", 15.436, "colour", ())
    assert {p.kind for p in page.problems} == {"missing field"}
    assert {p.field for p in page.problems} == {"caption", "json_link", *(f"image_files.{s}" for s in ("small", "medium", "large", "full_res"))}


def test_another_mission_in_the_same_envelope():
    page = read_page(curiosity(), recorded("quoted_records", "raw_image_items_insight_full_response.json"))
    (r,) = page.records
    assert (r.mission, r.camera, r.width, page.total, page.more) == ("insight", "icc", 1024, 1, False)
    report = tally(page.problems)
    assert report[report.kind == "unknown field"].field.tolist() == ["extended.localtime"]
    assert "unknown camera" in set(report.kind) and not any(f.startswith("(page)") for f in report.field)


@pytest.mark.parametrize("name, n", [("images_sol0.json.gz", 3720), ("images_sol1.json", 20), ("images_sol3.json", 372), ("images_sol10.json", 40), ("images_sol4.json", 0)])
def test_the_manifest_of_2015(name, n):
    body = recorded("msl_raw_images_2015", name)
    page = read_page(manifest_2015(), body)
    assert len(page.records) == len({r.id for r in page.records}) == n
    assert {(p.kind, p.field) for p in page.problems} <= {("missing field", "pdsLabelUrl")} # none contradicts its name
    for r, raw in zip(page.records, body["images"]):
        assert (r.id, r.sol, r.instrument, r.sample, r.urls) == (raw["itemName"], int(raw["sol"]), raw["instrument"], raw["sampleType"], (raw["urlList"],))
        assert r.utc.startswith(raw["utc"].rstrip("Z")[:19]) and (r.site is None) == (raw["site"] == "UNK")
    assert list(from_frame(to_frame(page.records))) == page.records == [from_row(to_row(r)) for r in page.records]


def test_the_manifest_through_a_client():
    names = {f"/msl-raw-images/image/images_sol{s}.json": s for s in (0, 1, 3, 4, 5, 7, 8, 10)}
    def answer(request):
        if request.url.path.endswith("image_manifest.json"): return httpx.Response(200, json=recorded("msl_raw_images_2015", "image_manifest.json"))
        if (sol := names.get(request.url.path)) is None: return httpx.Response(404)
        return httpx.Response(200, json=recorded("msl_raw_images_2015", f"images_sol{sol}.json{'.gz' * (sol == 0)}"))
    client = client_of(answer)
    assert manifest_2015().latest_sol(client) == 1112
    assert [len(gather(manifest_2015().iter_pages(client, s)).records) for s in (1, 3, 4, 10)] == [20, 372, 0, 40]
    with pytest.raises(FetchFailed, match="404"): list(manifest_2015().iter_pages(client, 2, HASTY))


@pytest.mark.parametrize("name, n, mission", [("curiosity_sol1000", 856, "curiosity"), ("opportunity_sol1", 95, "opportunity"), ("perseverance_sol0", 54, "perseverance")])
def test_the_service_that_is_gone(name, n, mission):
    page = read_page(MARS_PHOTOS, recorded("mars_photos_api", f"{name}.json"))
    assert len(page.records) == len({r.id for r in page.records}) == n and page.problems == []
    assert {r.mission for r in page.records} == {mission} and all(r.camera and parse_name(r.id) for r in page.records)
    assert all(bool(r.previews) == (mission == "perseverance") for r in page.records)


def test_names_tell_what_the_feed_of_2015_tells():
    n = 0
    for name in ("images_sol0.json.gz", "images_sol1.json", "images_sol3.json", "images_sol10.json"):
        for raw in recorded("msl_raw_images_2015", name)["images"]:
            parsed = parse_name(raw["itemName"])
            assert format_name(parsed) == raw["itemName"] and parse_name(raw["urlList"]) == parsed
            facts = facts_of(parsed)
            camera, side, known = read_instrument(raw["instrument"])
            assert known and (facts["camera"], facts.get("side", "")) == (camera, side)
            assert facts.get("sol", sol_of_clock(facts.get("clock", 0))) == int(raw["sol"])
            assert facts.get("sample", raw["sampleType"]) == raw["sampleType"]
            n += 1
    assert n == 4152


def test_names_tell_sol_and_camera_of_labelled_images():
    with open(real("msl_curiosity_v1/labels.csv"), newline="") as f: rows = list(csv.DictReader(f))
    seen = {"Mastcam-Left": ("mastcam", "left"), "Mastcam-Right": ("mastcam", "right"), "MAHLI": ("mahli", "")}
    for row in rows:
        facts = facts_of(parse_name(row["filename"]))
        assert facts["sol"] == int(row["sol"]) and (facts["camera"], facts.get("side", "")) == seen[row["camera"]]
        assert facts.get("colour", "") in ("", "colour" if row["mode"] == "RGB" else "grey")
    assert len(rows) > 5000


def test_a_real_folder():
    page = gather(Folder(real("rover_raw_images")).iter_pages())
    assert {(r.mission, r.camera, r.side, r.sol, r.width, r.height) for r in page.records} >= {
        ("curiosity", "navcam", "right", sol_of_clock(670586006), 1022, 1022), ("perseverance", "mastcam-z", "left", 38, 1648, 1200)}
    assert page.problems == []


# What they may send tomorrow

HOSTILE = ["../../.bashrc", "/etc/passwd", "C:\\boot.ini", "a\x00b", "a\nb", "\ud800", "x" * 300, "x" * 100_000, "CON", "名", "' OR 1=1 --", "<script>", "%2e%2e%2f", " ", "\u202egpj"]


@pytest.mark.parametrize("feed, make, key", [(curiosity(), item, "items"), (perseverance(), image, "images")])
def test_hostile_names_become_records_and_safe_files(feed, make, key, tmp_path):
    page = read_page(feed, {key: [make(imageid=n) for n in HOSTILE]})
    assert len(page.records) >= len(HOSTILE) - 1 # a blank is no name, the address has one
    names = {r.file_name for r in page.records}
    assert len(names) == len({r.id for r in page.records}) == len(page.records)
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        assert (tmp_path / name).resolve().parent == tmp_path.resolve() and len(name) < 130 and re.fullmatch(r"[\w.+~-]+", name)
    base = sqlite3.connect(":memory:")
    base.execute(f"create table r ({', '.join(COLUMNS)})")
    base.executemany(f"insert into r values ({', '.join('?' * len(COLUMNS))})", map(to_row, page.records))
    assert [from_row(row) for row in base.execute("select * from r")] == page.records == list(from_frame(to_frame(page.records)))


@settings(deadline=None, max_examples=200)
@given(st.text(), st.text())
def test_safe_names_are_safe_and_different(a, b):
    assert re.fullmatch(r"[A-Za-z0-9_+~-][A-Za-z0-9_.+~-]{0,119}", safe_name(a)) and (a == b or safe_name(a) != safe_name(b))
    assert safe_name(safe_name(a)) == safe_name(a) or "~" in safe_name(a)


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["UNK", "file:///x", "(9,9)", "2012-08-06T05:15:28", "1e400", "[::1"]),
                        lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=5), x, max_size=2), max_leaves=4)
EXAMPLES = [(curiosity(), "items", item()), (perseverance(), "images", image()), (MARS_PHOTOS, "photos", {"img_src": "http://a.example/x.jpg", "sol": 1, "camera": {"name": "MAST"}, "rover": {"name": "Spirit"}}),
            (manifest_2015(), "images", {"itemName": "x", "sol": "00001", "urlList": "http://a.example/x.jpg", "sclk": "1", "lmst": "Sol-00000M15:03:48.096"})]


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_no_value_is_fatal_and_each_change_is_reported(data):
    feed, key, good = data.draw(st.sampled_from(EXAMPLES))
    path = data.draw(st.sampled_from([*feed.fields, "new", "extended", "camera"])).split(".")
    spoilt, change = copy.deepcopy(good), data.draw(st.sampled_from(["put", "drop"]))
    inner = spoilt
    for k in path[:-1]: inner = inner.setdefault(k, {}) if isinstance(inner, dict) else {}
    had = path[-1] in inner
    inner[path[-1]] = data.draw(ANYTHING)
    if change == "drop": del inner[path[-1]]
    page = read_page(feed, {key: [good, spoilt]}, "https://mars.example/list")
    assert len(page.records) + sum(p.kind in ("not an item", "no id") for p in page.problems) >= 2
    assert list(from_frame(to_frame(page.records))) == page.records
    field = ".".join(path)
    if change == "drop" and had and field in feed.fields: assert ("missing field", field) in {(p.kind, p.field) for p in page.problems}
    if change == "put" and field == "new": assert ("unknown field", "new") in {(p.kind, p.field) for p in page.problems}


def test_what_an_item_lacks_does_not_hide_what_it_has():
    page = read_page(curiosity(), {"items": [item(extended=None), item(1, sol="UNK"), item(2, sol=None, spacecraft_clock="soon")], "more": False, "total": 3, "page": 0, "per_page": 100})
    assert [r.sol for r in page.records] == [900, sol_of_clock(477390001), sol_of_clock(477390002)]
    assert page.records[0].sample == "full" # its name says so
    report = tally(page.problems)
    assert report[report.kind == "bad value"].field.tolist() == ["spacecraft_clock"] and sum(report.kind == "missing field") == 8


def test_the_feed_stays_where_its_name_disagrees():
    page = read_page(curiosity(), {"items": [item(instrument="RHAZ_RIGHT_B", sol=901)], "more": False, "total": 1, "page": 0, "per_page": 100})
    (r,) = page.records
    assert (r.camera, r.side) == ("rear hazcam", "right")
    assert {p.field for p in page.problems if p.kind == "contradiction"} == {"camera", "side"}
    assert disagreements(r) and disagreements(complete(Record("curiosity", r.id))) == {}


# Pages

class Service:
    "A newest-first service of one sol; before request k it does what `events[k]` says"
    def __init__(self, n, events, per_page, key="items", make=item):
        self.ids, self.events, self.per_page, self.key, self.make, self.asked, self.born = list(range(n)), events, per_page, key, make, 0, n

    def __call__(self, request):
        for kind, value in self.events.get(self.asked, ()):
            if kind == "arrive": self.ids[:0], self.born = range(self.born, self.born + value), self.born + value
            elif self.ids: self.ids.pop(value % len(self.ids))
        self.asked += 1
        at = int(request.url.params["page"]) * self.per_page
        return httpx.Response(200, json={self.key: [self.make(i) for i in self.ids[at:at + self.per_page]], "total": len(self.ids)})


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 50), st.sampled_from([3, 20, 100]), st.dictionaries(st.integers(0, 6), st.one_of(
    st.tuples(st.just("arrive"), st.integers(1, 25)), st.tuples(st.just("leave"), st.integers(0, 99))).map(lambda e: [e]), max_size=3),
    st.sampled_from([(curiosity(), "items", item, 900), (perseverance(), "images", image, 905)]))
def test_moving_pages_lose_nothing(n, per_page, events, service):
    feed, key, make, sol = service
    listed = Service(n, events, per_page, key, make)
    page = gather(feed.iter_pages(client_of(listed), sol))
    ids = [r.id for r in page.records]
    assert len(ids) == len(set(ids))
    if not any(p.kind == "moving" for p in page.problems): assert set(ids) >= {make(i)["imageid"] for i in listed.ids}
    assert listed.asked <= 3 * (140 // per_page + 4)


def test_duplicates_and_other_sols_are_told_and_left_out():
    listed = [item(0), item(0), item(0, title="again", site=45), item(1, sol=899, imageid="x"), item(2)]
    def answer(request): return httpx.Response(200, json={"items": listed if request.url.params["page"] == "0" else [], "more": False, "total": 5, "page": 0, "per_page": 100})
    page = gather(curiosity().iter_pages(client_of(answer), 900))
    assert [r.id for r in page.records] == [item(0)["imageid"], item(2)["imageid"]]
    assert sorted((p.kind, p.field) for p in page.problems if p.field not in ("site", "drive")) == [("duplicate", ""), ("duplicate", "differs"), ("other sol", "sol")]


def test_services_that_never_end_are_left():
    asked = []
    def stuck(request):
        asked.append(request)
        return httpx.Response(200, json={"items": [item()], "more": True, "total": 10**9, "page": 0, "per_page": 100})
    assert len(gather(curiosity().iter_pages(client_of(stuck), 900)).records) == 1 and len(asked) < 10


def test_bad_days_pass_and_worse_ones_are_told():
    good, pauses = {"items": [item()], "more": False, "total": 1, "page": 0, "per_page": 100}, []
    for bad in (httpx.Response(500), httpx.Response(429, headers={"Retry-After": "3"}), httpx.Response(200, html="<html>maintenance</html>"), httpx.Response(200, text="")):
        answers = iter([bad, httpx.Response(200, json=good)])
        assert len(gather(curiosity().iter_pages(client_of(lambda request: next(answers)), 900, Patience(pause=pauses.append))).records) == 1
    assert pauses == [1.0, 3.0, 1.0, 1.0]
    for bad in (httpx.Response(404), httpx.Response(200, html="<html>sorry</html>"), httpx.Response(200, json=[]), httpx.Response(200, json={"items": "none"})):
        with pytest.raises(FetchFailed): list(curiosity().iter_pages(client_of(lambda request: bad), 900, HASTY))
    with pytest.raises(FetchFailed, match="newest sol"): curiosity().latest_sol(client_of(lambda request: httpx.Response(200, json={"items": []})), HASTY)


def test_a_broken_line_is_asked_again():
    body = json.dumps({"items": [item()], "more": False, "total": 1, "page": 0, "per_page": 100}).encode()
    class Handler(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Handler.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:50] if Handler.asked == 1 else body)
            self.close_connection = True

        def log_message(self, *args): pass
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, httpx.Client(timeout=5) as client:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        feed = curiosity(f"http://127.0.0.1:{server.server_port}")
        assert len(gather(feed.iter_pages(client, 900, HASTY)).records) == 1 and Handler.asked == 2
        server.shutdown()
    with httpx.Client(timeout=1) as client, pytest.raises(FetchFailed, match="ConnectError"): list(feed.iter_pages(client, 900, HASTY))


def test_a_sol_is_asked_for_as_each_service_wants_it():
    asked = []
    def answer(request):
        asked.append(request.url)
        return httpx.Response(200, json={"items": [item()], "images": [image()], "latest_sol": 1500, "total": 1, "more": False})
    client = client_of(answer)
    gather(curiosity().iter_pages(client, 900)), gather(perseverance().iter_pages(client, 905))
    assert (asked[0].path, asked[0].params["condition_2"], asked[0].params["condition_1"]) == ("/api/v1/raw_image_items/", "900:sol:in", "msl:mission")
    assert (asked[1].path, asked[1].params["sol"], asked[1].params["category"]) == ("/rss/api/", "905", "mars2020")
    assert curiosity().latest_sol(client) == 900 and perseverance().latest_sol(client) == 1500


@pytest.mark.parametrize("link, kept", [("a/../0019MR0000530080100146C00_DRCL.IMG", True), ("../0019MR0000530080100146C00_DRCL.IMG", False), ("/etc/x.IMG", False), ("..%2f..%2fx.IMG", False),
                                        ("http://else.example/SURFACE/0019/x.IMG", False), ("javascript:x.IMG", False), ("http://[x.IMG", False), ("x%00y.IMG", True)])
def test_links_out_of_the_folder_are_not_followed(link, kept):
    volume = PdsVolume("v", "curiosity", "https://pds.example/SURFACE/{sol:04}/")
    page = gather(volume.iter_pages(client_of(lambda request: httpx.Response(200, html=f'<a href="{link}">x</a>')), 19))
    assert [r.urls[0].startswith("https://pds.example/SURFACE/0019/") for r in page.records] == [True] * kept


def test_a_page_too_large_is_not_read_to_its_end():
    def endless():
        while True: yield b" " * 2**22
    with pytest.raises(FetchFailed, match="more than"): fetch_page(client_of(lambda request: httpx.Response(200, content=endless())), "http://a.example", {}, HASTY)


def test_a_record_refuses_what_breaks_a_catalogue():
    for bad in ({"id": "a\nb"}, {"mission": "X"}, {"utc": "soon"}, {"urls": ("a b",)}, {"sol": 2**60}, {"clock": float("nan")}, {"camera": "\ud800"}):
        with pytest.raises(BadInput): Record(**{"mission": "curiosity", "id": "x"} | bad)
