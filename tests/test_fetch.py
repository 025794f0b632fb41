"Downloads against a server that stops, lies, stalls and refuses; archives that climb out"
import email.utils
import gzip
import hashlib
import io
import multiprocessing
import os
import re
import signal
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from planetlab import cli, download
from planetlab.archives import unpack
from planetlab.core import LOCK, BadInput, CannotWrite, Corrupt, find_input, read_json, write_json
from planetlab.datasets import read_dataset, write_toy_msl
from planetlab.download import FetchFailed, RemoteFile, iter_download, noted_hash
from planetlab.fetch import SOURCES, cache_folder, datasheet, fetch

BODY = bytes(range(251)) * 1600
FORK = multiprocessing.get_context("spawn" if sys.platform == "win32" else "fork")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals, forks and limits of a process are POSIX")
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass

    def reply(self, status, body=b"", length=None, stop=None, **headers):
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k.replace("_", "-"), v)
        self.send_header("Connection", "close")
        if length != "none": self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.server.sent += len(body[:stop]) # before the last byte can arrive
        self.wfile.write(body[:stop])

    def whole(self, body=BODY, stop=None, ranges=True, slow=0, **headers):
        "An honest server, that may stop"
        tag = headers.setdefault("ETag", '"' + hashlib.md5(body).hexdigest() + '"')
        ask = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not ask or not ranges or self.headers.get("If-Range", tag) not in (tag, headers.get("Last_Modified")): return self.reply(200, body, stop=stop, **headers)
        start = int(ask[1])
        if start >= len(body): return self.reply(416, Content_Range=f"bytes */{len(body)}")
        self.reply(206, body[start:], stop=stop and max(0, stop - start), Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", **headers)

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        acts = self.server.acts.get(self.path)
        if not acts: return self.reply(404)
        (acts.pop(0) if len(acts) > 1 else acts[0])(self)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *args): pass
    def forget(self): self.acts, self.asked, self.sent = {}, [], 0


@pytest.fixture(scope="module")
def one_server():
    s = Server(("127.0.0.1", 0), Handler)
    s.url = f"http://127.0.0.1:{s.server_port}"
    threading.Thread(target=s.serve_forever, args=(0.05,), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


@pytest.fixture
def server(one_server):
    "`acts`: for each path, what is done request by request; the last for ever"
    one_server.forget()
    return one_server


@pytest.fixture
def waits(monkeypatch):
    "The pauses a download makes, noted and not waited for"
    noted = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=noted.append, time=time.time))
    return noted


def get(file, folder, **kwargs): return list(iter_download(file, folder, **{"wait_s": 0, "timeout_s": 5, **kwargs}))
def remote(server, *paths, hash=SHA, name="x.bin"): return RemoteFile(name, tuple(server.url + p for p in paths or ["/x"]), hash, "https://example.org")
def visible(folder): return sorted(p.name for p in folder.iterdir() if p.name[0] != ".")


@pytest.mark.parametrize("hash", [SHA, None])
@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_after_every_stop(server, tmp_path, hash, ranges):
    server.acts["/x"] = [lambda h: h.whole(stop=100_000), lambda h: h.whole(stop=250_000, ranges=ranges), lambda h: h.whole(ranges=ranges)]
    get(remote(server, hash=hash), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY and visible(tmp_path) == ["x.bin"] and noted_hash(tmp_path / "x.bin") == SHA
    assert (server.sent == len(BODY)) == ranges
    assert get(remote(server, hash=hash), tmp_path) == [] and len(server.asked) == 3


@settings(deadline=None, max_examples=12)
@given(stops=st.lists(st.integers(0, len(BODY)), max_size=4), known=st.booleans())
def test_no_pattern_of_stops_changes_a_byte(one_server, tmp_path_factory, stops, known):
    one_server.forget()
    one_server.acts["/x"] = [*(lambda h, at=at: h.whole(stop=at) for at in stops), Handler.whole]
    folder = tmp_path_factory.mktemp("stops")
    get(remote(one_server, hash=SHA if known else None), folder, tries=6)
    assert (folder / "x.bin").read_bytes() == BODY


@pytest.mark.parametrize("marks", [{"ETag": '"a"'}, {"ETag": 'W/"a"'}, {"ETag": 'W/"a"', "Last_Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}])
def test_a_file_that_changed_is_begun_again(server, tmp_path, marks):
    new = {"ETag": '"b"', "Last_Modified": "Sun, 02 Jan 2022 00:00:00 GMT"}
    server.acts["/x"] = [lambda h: h.whole(stop=200_000, **marks), lambda h: h.whole(BODY[::-1], **new)]
    get(remote(server, hash=None), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY[::-1]
    assert server.asked[1][1].get("If-Range") == ({'"a"': '"a"'}.get(marks["ETag"]) or marks.get("Last_Modified"))


def test_a_server_that_joins_two_versions_is_found_out(server, tmp_path):
    server.acts["/x"] = [lambda h: h.whole(stop=200_000), lambda h: h.reply(206, BODY[::-1][200_000:], Content_Range=f"bytes 200000-{len(BODY) - 1}/{len(BODY)}"), Handler.whole]
    get(remote(server), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY


@pytest.mark.parametrize("hash", [SHA, None])
def test_a_length_too_large(server, tmp_path, hash):
    server.acts["/x"] = [lambda h: h.reply(200, BODY, length=len(BODY) + 1000, ETag='"a"') if "Range" not in h.headers else h.reply(416, Content_Range=f"bytes */{len(BODY)}")]
    if hash: # every byte is there, and a hash to know it by
        get(remote(server, hash=hash), tmp_path)
        assert (tmp_path / "x.bin").read_bytes() == BODY
    else:
        with pytest.raises(FetchFailed): get(remote(server, hash=hash), tmp_path)
        assert visible(tmp_path) == []


def test_a_length_too_small(server, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z: z.writestr("a.txt", BODY)
    server.acts["/x"] = [lambda h: h.reply(200, BODY, length=1000)]
    server.acts["/x.zip"] = [lambda h: h.reply(200, packed.getvalue(), length=1000)]
    with pytest.raises(FetchFailed, match="another hash"): get(remote(server), tmp_path)
    with pytest.raises(Corrupt, match="nothing of it was kept"): fetch(f"{server.url}/x.zip", tmp_path, progress=False)
    assert not (tmp_path / "x").exists() and "x.bin" not in visible(tmp_path)


def test_no_length_at_all(server, tmp_path):
    server.acts["/x"] = [lambda h: h.reply(200, BODY, length="none")]
    with pytest.raises(FetchFailed, match="half of it could pass for the whole"): get(remote(server, hash=None), tmp_path)
    assert visible(tmp_path) == []
    get(remote(server), tmp_path)
    assert visible(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("wait, when", [(1, "1"), (90, "90"), (20, lambda: email.utils.formatdate(time.time() + 20, usegmt=True))])
def test_retry_after_is_honoured(server, tmp_path, waits, wait, when):
    text = when if isinstance(when, str) else when()
    server.acts["/x"] = [lambda h: h.reply(429, Retry_After=text), Handler.whole]
    get(remote(server), tmp_path)
    assert (waits[0] == wait if isinstance(when, str) else wait - 6 < waits[0] <= wait) and len(waits) == 1 and visible(tmp_path) == ["x.bin"]


def test_pauses_double_and_begin_anew_with_each_new_byte(server, tmp_path, waits):
    bad = lambda h: h.reply(500)
    server.acts["/x"] = [bad, bad, lambda h: h.whole(stop=100_000), bad, bad, Handler.whole]
    get(remote(server), tmp_path, wait_s=3)
    assert waits == [6, 12, 3, 6, 12] and visible(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("after", [0, 150_000])
def test_an_answer_that_may_pass_is_waited_out_and_one_that_stays_is_told(server, tmp_path, waits, status, after):
    server.acts["/x"] = [*[lambda h: h.whole(stop=after)] * bool(after), lambda h: h.reply(status)]
    with pytest.raises(FetchFailed, match=rf"{status} .*asked 3 times"): get(remote(server), tmp_path, tries=3)
    assert visible(tmp_path) == [] and len(server.asked) == 3 + bool(after)
    server.acts["/x"] = [lambda h: h.reply(status), Handler.whole]
    get(remote(server), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert server.sent == len(BODY)


@pytest.mark.parametrize("text", ["soon", "-5", "²", "", "Mon, 99 Jan 99999 00:00:00 GMT", "0"])
def test_a_pause_that_makes_no_sense_is_none(server, tmp_path, text):
    server.acts["/x"] = [lambda h: h.reply(503, Retry_After=text.encode().decode("latin-1")), Handler.whole]
    get(remote(server), tmp_path)
    assert visible(tmp_path) == ["x.bin"]


def test_a_loop_left_open_is_told(server, tmp_path):
    server.acts["/x"] = [Handler.whole]
    first = iter_download(remote(server), tmp_path)
    next(first)
    with pytest.raises(CannotWrite, match="earlier loop"): get(remote(server), tmp_path)
    first.close()
    get(remote(server), tmp_path)
    assert visible(tmp_path) == ["x.bin"]


def test_mirrors_in_turn_and_a_message_that_names_them(server, tmp_path):
    server.acts = {"/busy": [lambda h: h.reply(503, Retry_After="36000")], "/bad": [lambda h: h.reply(500)], "/other": [lambda h: h.whole(BODY[:-1])], "/empty": [lambda h: h.reply(200)],
                   "/packed": [lambda h: h.reply(200, gzip.compress(BODY), Content_Encoding="gzip")], "/loop": [lambda h: h.reply(302, Location="/loop")], "/away": [lambda h: h.reply(302, Location="ftp://x/y")]}
    dead = remote(server, "/gone", *server.acts)
    dead = replace(dead, urls=(*dead.urls, "http://127.0.0.1:9/refused", "not an address"))
    begin = time.monotonic()
    with pytest.raises(FetchFailed) as e: get(dead, tmp_path, tries=2)
    assert time.monotonic() - begin < 10 and visible(tmp_path) == []
    for text in (*dead.urls, "404", "503", "come back in 36000 s", "500", "another hash", "empty", "compressed", "TooManyRedirects", "UnsupportedProtocol", "https://example.org", SHA, str(tmp_path / "x.bin")):
        assert text in str(e.value), text
    server.acts["/good"] = [lambda h: h.reply(500), lambda h: h.reply(500), Handler.whole]
    get(replace(dead, urls=(*dead.urls, f"{server.url}/good")), tmp_path, tries=3)
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_a_redirect_and_a_unicode_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANETLAB_CACHE", str(tmp_path))
    server.acts = {"/a/%E7%81%AB%E6%98%9F%20%C3%A9.bin?download=1": [lambda h: h.reply(302, Location="/b")], "/b": [lambda h: h.whole(stop=1000), Handler.whole]}
    got = fetch(f"{server.url}/a/%E7%81%AB%E6%98%9F%20%C3%A9.bin?download=1", progress=False, wait_s=0)
    assert visible(got.folder) == [LOCK, "火星 é.bin"] and got.hashes == {"火星 é.bin": SHA} and got.folder.parent == cache_folder() == tmp_path
    for evil in ("/..%2F..%2Fevil", "/.hidden", "/", "/%00"):
        server.acts[evil] = [Handler.whole]
        assert fetch(server.url + evil, progress=False).folder.parent == tmp_path
    assert all(p.name.startswith(("url-", ".")) for p in tmp_path.iterdir())


def test_silence_is_not_waited_out(server, tmp_path):
    server.acts["/x"] = [lambda h: time.sleep(3), Handler.whole]
    get(remote(server), tmp_path, timeout_s=1)
    assert visible(tmp_path) == ["x.bin"]


def test_put_there_by_hand(tmp_path):
    lost = RemoteFile("x.bin", (), SHA)
    (tmp_path / "x.bin").write_bytes(BODY[:-1])
    with pytest.raises(FetchFailed, match="What lies there now has another hash"): get(lost, tmp_path)
    (tmp_path / "x.bin").write_bytes(BODY)
    assert get(lost, tmp_path) == [] and noted_hash(tmp_path / "x.bin") == SHA
    assert get(replace(lost, hash="md5:" + hashlib.md5(BODY).hexdigest()), tmp_path) == []
    (tmp_path / "x.bin").write_bytes(BODY[::-1]) # rotten since
    with pytest.raises(FetchFailed): get(replace(lost, hash=None), tmp_path)


def _child(say, url, folder, hash, limit):
    "A download in a process of its own, that says how far it is"
    if limit:
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        for s in iter_download(RemoteFile("x.bin", (url + "/x",), hash), folder, wait_s=0.1): say.send(s.here)
    except OSError as e: say.send(type(e).__name__)
    say.close()


def child(*args, limit=0):
    here, there = FORK.Pipe(False)
    p = FORK.Process(target=_child, args=(there, *args, limit))
    p.start()
    there.close()
    return p, here


def all_said(here):
    said = []
    try:
        while here.poll(60): said.append(here.recv())
    except EOFError: return said
    raise TimeoutError("nothing was heard for a minute")


def slowly(h):
    "An honest server on a thin line"
    start = int((re.match(r"bytes=(\d+)-", h.headers.get("Range", "")) or [0, 0])[1])
    h.send_response(206 if start else 200)
    if start: h.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
    h.send_header("ETag", '"a"')
    h.send_header("Content-Length", str(len(BODY) - start))
    h.end_headers()
    for i in range(start, len(BODY), 20_000):
        h.wfile.write(BODY[i:i + 20_000])
        time.sleep(0.01)


@posix
@pytest.mark.parametrize("hash", [SHA, None])
def test_killed_in_a_download(server, tmp_path, hash):
    server.acts["/x"] = [slowly]
    p, here = child(server.url, tmp_path, hash)
    while here.recv() < 100_000: pass
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    assert visible(tmp_path) == []
    size = (tmp_path / ".x.bin.part").stat().st_size
    steps = get(remote(server, hash=hash), tmp_path)
    assert steps[0].here == size >= 100_000 and (tmp_path / "x.bin").read_bytes() == BODY


@posix
def test_two_at_once_fetch_it_once(server, tmp_path):
    server.acts["/x"] = [slowly]
    both = [child(server.url, tmp_path, SHA) for _ in range(2)]
    said = [all_said(here) for _, here in both]
    for p, _ in both: p.join()
    assert [p.exitcode for p, _ in both] == [0, 0] and sorted(map(bool, said)) == [False, True]
    assert len(server.asked) == 1 and (tmp_path / "x.bin").read_bytes() == BODY


@posix
def test_a_write_that_fails(server, tmp_path):
    server.acts["/x"] = [slowly]
    p, here = child(server.url, tmp_path, SHA, limit=150_000)
    assert all_said(here)[-1] == "CannotWrite" and visible(tmp_path) == []
    p.join()
    get(remote(server), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY


@pytest.mark.parametrize("bad", ["a/b", "../x", "", ".x", "/x"])
def test_names_of_files(tmp_path, bad):
    with pytest.raises(BadInput): get(RemoteFile(bad), tmp_path)


def make_tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as t:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, content if isinstance(content, str) else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            t.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return path


def make_zip(path, *members, mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            z.writestr(info, content)
    return path


EVIL = ["../evil", "a/../../evil", "/evil", "C:evil", "C:\\evil", "..\\evil", "\\\\host\\share\\evil"]


@pytest.mark.parametrize("name", EVIL)
def test_names_that_climb_out(tmp_path, name):
    for made in (make_zip(tmp_path / "a.zip", ("good", b"1"), (name, b"evil")), make_tar(tmp_path / "a.tgz", ("good", tarfile.REGTYPE, b"1"), (name.replace("..\\", "../"), tarfile.REGTYPE, b"evil"))):
        with pytest.raises(Corrupt, match="outside its folder"): unpack(made, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not list(tmp_path.parent.glob("*evil*")) and not list(tmp_path.glob("*evil*")) and not os.path.exists("/evil")


def test_links_and_devices(tmp_path):
    kinds = {tarfile.SYMTYPE: "/etc/passwd", tarfile.LNKTYPE: "good", tarfile.CHRTYPE: "", tarfile.BLKTYPE: "", tarfile.FIFOTYPE: ""}
    for kind, target in kinds.items():
        with pytest.raises(Corrupt, match="link or a device"): unpack(make_tar(tmp_path / "a.tar", ("good", tarfile.REGTYPE, b"1"), ("x", kind, target), mode="w"), tmp_path / "out")
    with pytest.raises(Corrupt, match="link or a device"): unpack(make_zip(tmp_path / "a.zip", ("x", b"/etc/passwd"), mode=0o120777), tmp_path / "out")
    assert visible(tmp_path) == ["a.tar", "a.zip"]


def test_bombs_and_quarrels(tmp_path):
    zeros = bytes(11_000_000)
    for made in (make_zip(tmp_path / "b.zip", ("zeros", zeros)), make_tar(tmp_path / "b.tar.xz", ("zeros", tarfile.REGTYPE, zeros), mode="w:xz")):
        with pytest.raises(Corrupt, match="more than 10000000 bytes"): unpack(made, tmp_path / "out")
        assert (unpack(made, tmp_path / made.name[2:], max_ratio=1e6) / "zeros").stat().st_size == len(zeros)
        with pytest.raises(Corrupt, match="more than 1000 bytes"): unpack(made, tmp_path / "out", max_bytes=1000, max_ratio=1e6)
    lying = bytearray(make_zip(tmp_path / "c.zip", ("zeros", bytes(9_000_000)), ("b", b"1")).read_bytes())
    at = lying.rindex(b"PK\x01\x02", 0, lying.rindex(b"PK\x01\x02"))
    lying[at + 24:at + 28] = (10).to_bytes(4, "little") # says ten bytes
    (tmp_path / "c.zip").write_bytes(lying)
    with pytest.raises(Corrupt): unpack(tmp_path / "c.zip", tmp_path / "out")
    with pytest.raises(Corrupt, match="twice"): unpack(make_tar(tmp_path / "d.tar", *[("a", tarfile.REGTYPE, b"1")] * 2, mode="w"), tmp_path / "out")
    with pytest.raises(Corrupt): unpack(make_tar(tmp_path / "d.tar", ("a", tarfile.REGTYPE, b"1"), ("a/b", tarfile.REGTYPE, b"1"), mode="w"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(deadline=None, max_examples=15)
@given(st.data(), st.sampled_from(["zip", "tar", "tgz"]))
def test_a_cut_archive_is_whole_or_nothing(tmp_path_factory, data, kind):
    folder = tmp_path_factory.mktemp("cut")
    names = {"Оккатор/火山.txt": b"1" * 700, "b.txt": BODY[:3000]}
    made = make_zip(folder / "a.zip", *names.items()) if kind == "zip" else make_tar(folder / "a.tar", *((n, tarfile.REGTYPE, c) for n, c in names.items()), mode="w:gz" if kind == "tgz" else "w")
    raw = made.read_bytes()
    made.write_bytes(raw[:data.draw(st.integers(0, len(raw)))])
    try: out = unpack(made, folder / "out")
    except Corrupt: assert not (folder / "out").exists()
    else: assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == names # only zeros were cut


@settings(deadline=None, max_examples=25)
@given(st.data(), st.sampled_from(["gz", "xz", "bz2"]))
def test_a_damaged_archive_is_whole_or_nothing(tmp_path_factory, data, kind):
    folder = tmp_path_factory.mktemp("damaged")
    names = {f"{i}.txt": BODY[i * 100:i * 100 + 512] for i in range(4)}
    raw = bytearray(make_tar(folder / "a.tar", *((n, tarfile.REGTYPE, c) for n, c in names.items()), mode=f"w:{kind}").read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "a.tar").write_bytes(raw)
    try: out = unpack(folder / "a.tar", folder / "out")
    except Corrupt: assert not (folder / "out").exists()
    else: assert {p.name: p.read_bytes() for p in out.iterdir()} == names # a byte nobody reads


def test_a_damaged_header_is_no_end(tmp_path):
    made = make_tar(tmp_path / "a.tar", *((n, tarfile.REGTYPE, b"1") for n in "abc"), mode="w")
    raw = bytearray(made.read_bytes())
    raw[2 * 512 + 3] ^= 1 # in the header of b
    made.write_bytes(raw)
    with pytest.raises(Corrupt, match="end mark"): unpack(made, tmp_path / "out")


def test_another_archive_takes_the_place_of_the_first(tmp_path):
    unpack(make_zip(tmp_path / "a.zip", ("old", b"1")), tmp_path / "out")
    (tmp_path / "out" / "mine").write_text("kept while the archive is the same")
    assert visible(unpack(tmp_path / "a.zip", tmp_path / "out")) == ["mine", "old"]
    (tmp_path / ".out.partial").mkdir() # left by a kill
    assert visible(unpack(make_zip(tmp_path / "a.zip", ("new", b"1")), tmp_path / "out")) == ["new"]
    (tmp_path / "own").mkdir()
    with pytest.raises(CannotWrite, match="move it away"): unpack(tmp_path / "a.zip", tmp_path / "own")


def test_the_table_of_sources():
    assert {"msl_curiosity_v1", "hirise_landmarks_v1", "hirise_landmarks_v3", "venus_jartool", "lunar_rocks"} <= set(SOURCES)
    for name, s in SOURCES.items():
        assert all(f.urls or f.page for f in s.files) and "Not verified" in datasheet(name)
        assert all(f.hash is None or re.fullmatch("(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})", f.hash) for f in s.files)


def test_a_datasheet_of_real_data():
    folder = real("msl_curiosity_v1")
    sheet = datasheet("msl_curiosity_v1", folder)
    assert "5384 .jpg in images.zip" in sheet and "Stanboli" in sheet and hashlib.sha256((folder / "labels.csv").read_bytes()).hexdigest() in sheet


def test_the_first_fetch_binds_all_later_ones(server, tmp_path):
    old, new = (make_zip(tmp_path / f"{i}.zip", ("images/火.txt", i)).read_bytes() for i in (b"1", b"2"))
    server.acts["/x.zip"] = [lambda h: h.whole(old)]
    got = fetch(f"{server.url}/x.zip", tmp_path / "data", progress=False)
    noted = read_json(got.folder / LOCK)
    assert noted == {"x.zip": {"bytes": len(old), "sha256": hashlib.sha256(old).hexdigest()}} and f"sha256:{noted['x.zip']['sha256']}" == got.hashes["x.zip"]
    server.acts["/x.zip"] = [lambda h: h.whole(new)]
    assert fetch(f"{server.url}/x.zip", got.folder, progress=False) == got # nobody is asked
    for kept in ([LOCK], [LOCK, "x"]): # a fresh clone; an archive thrown away
        clone = tmp_path / f"clone{len(kept)}"
        clone.mkdir()
        write_json(clone / LOCK, noted)
        with pytest.raises(FetchFailed, match=f"another hash[^!]*{len(old)} bytes, was noted in [^!]*delete the lock file"): fetch(f"{server.url}/x.zip", clone, progress=False)
        assert visible(clone) == [LOCK] and read_json(clone / LOCK) == noted
        server.acts["/x.zip"] = [lambda h: h.whole(old)]
        assert fetch(f"{server.url}/x.zip", clone, progress=False).hashes == got.hashes
        server.acts["/x.zip"] = [lambda h: h.whole(new)]
    sha = f"sha256:{hashlib.sha256(new).hexdigest()}"
    assert fetch(f"{server.url}/x.zip", clone, hash=sha, progress=False).hashes == {"x.zip": sha} # said in so many words
    assert read_json(clone / LOCK)["x.zip"]["bytes"] == len(new) and (clone / "x" / "images" / "火.txt").read_text() == "2"
    for bad in ('{"x.zip": 3}', '["x.zip"]', '{"x.zip": {"sha256": "abc"}}', "{"):
        (clone / LOCK).write_text(bad)
        with pytest.raises(Corrupt, match="restore it"): fetch(f"{server.url}/x.zip", clone, progress=False)


def test_what_is_fetched_by_name_is_found_by_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANETLAB_CACHE", str(tmp_path / "cache"))
    written = write_toy_msl(tmp_path / "made" / "msl-images", 30, rng=np.random.default_rng(0), size=16)
    packed = make_zip(tmp_path / "m.zip", *((p.relative_to(tmp_path / "made").as_posix(), p.read_bytes()) for p in (tmp_path / "made").rglob("*.*"))).read_bytes()
    server.acts["/m.zip"] = [lambda h: h.whole(packed, stop=500), lambda h: h.reply(404), lambda h: h.whole(packed)]
    public = replace(SOURCES["msl_curiosity_v1"], files=(RemoteFile("msl-images.zip", (f"{server.url}/m.zip",)),))
    monkeypatch.setitem(SOURCES, "toy_curiosity", public)
    with pytest.raises(BadInput, match="planetlab fetch"): find_input("toy_curiosity")
    with pytest.raises(FetchFailed): fetch("toy_curiosity", progress=False, wait_s=0)
    with pytest.raises(BadInput, match="not fetched to its end"): find_input("toy_curiosity")
    assert "Not fetched yet" in datasheet("toy_curiosity") and "Trusted on first use" in datasheet("toy_curiosity")
    got = fetch("toy_curiosity", progress=False, wait_s=0)
    assert find_input("toy_curiosity") == got.folder == tmp_path / "cache" / "toy_curiosity"
    assert len(read_dataset(find_input("toy_curiosity"))) == len(written) and got.hashes["msl-images.zip"] in datasheet("toy_curiosity")
    with pytest.raises(BadInput): find_input("toy_curiosity/none")


def test_the_command(server, planetlab, tmp_path, monkeypatch, capsys):
    packed = make_zip(tmp_path / "x.zip", ("images/火.txt", b"1")).read_bytes()
    server.acts["/x.zip"] = [lambda h: h.whole(packed, stop=50), lambda h: h.whole(packed)]
    monkeypatch.setenv("PLANETLAB_CACHE", str(tmp_path / "cache"))
    done = planetlab("fetch", f"{server.url}/x.zip", env=dict(os.environ))
    sha = hashlib.sha256(packed).hexdigest()
    assert done.returncode == 0 and f"sha256:{sha}  x.zip" in done.stdout and len(list((tmp_path / "cache").rglob("火.txt"))) == 1

    def command(*args): # the same, without another process
        monkeypatch.setattr(sys, "argv", ["planetlab", *args])
        with pytest.raises(SystemExit) as end: cli.main()
        return end.value.code or 0, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    code, out, _ = command("fetch", f"{server.url}/x.zip", "--to", "here", "--hash", f"SHA256:{sha}")
    assert code == 0 and (tmp_path / "here" / "x" / "images" / "火.txt").exists() and (tmp_path / "here" / LOCK).exists()
    code, _, said = command("fetch", f"{server.url}/gone")
    assert code == 1 and "404" in said and "by hand" in said and "Traceback" not in said
