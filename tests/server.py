"""A server on this machine that lists and serves the photographs of rovers that never drove, and misbehaves on demand

It speaks as the two services of today and the one of 2015 do. `Server.mood(path, nth)` says how the n-th request for a path is answered;
`Server.before(path)` is called first and may change what there is, as a rover does.
"""
import io
import json
import random
import re
import struct
import threading
import time
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

HTML = b"<!DOCTYPE html><html><body><h1>Sorry</h1>The service is being worked on</body></html>" * 9


@dataclass(frozen=True)
class Mood:
    "How one request is answered"
    latency: float = 0.0         # s
    status: int = 200
    headers: dict = field(default_factory=dict)
    stop: float | None = None    # Share of the body after which the line drops
    lie: int = 0                 # Bytes that Content-Length says too much
    body: bytes | None = None    # Instead of what was asked for
    kind: str | None = None      # Content-Type, if it is to lie
    ranges: bool = True          # Whether parts are given


class Shot(NamedTuple):
    "A photograph: what the services say of it, and its bytes"
    id: str
    sol: int
    address: str # Path on the server
    n: int       # Which of the images it is
    side: int = 96

    @property
    def body(self): return picture(self.n, self.address.endswith(".png"), self.side)


@lru_cache(64)
def _base(which, png, side):
    rng = np.random.default_rng(which)
    coarse = rng.integers(40, 215, (side // 8, side // 8, 3), dtype="uint8").repeat(8, 0).repeat(8, 1)
    Image.fromarray(np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype("uint8")).save(out := io.BytesIO(), "PNG" if png else "JPEG")
    return out.getvalue()


@lru_cache(256)
def picture(n, png=False, side=96):
    "Bytes that no other picture has: one of a few images with its number in a comment"
    base, text = _base(n % 32, png, side), f"n={n}".encode()
    if not png: return base[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + base[2:]
    chunk = b"tEXt" + b"Comment\0" + text
    return base[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + base[33:]


def shots(n, sols=5, first=0, side=96):
    "Photographs of the left Navcam, `n` in all"
    return [Shot(f"NLB_{486272784 + i:09}EDR_F0481570NCAM00{i % 900:03}M_", first + i % sols, f"/raw/{i:06}.JPG", i, side) for i in range(n)]


def calm(path, nth): return Mood()


ILLS = (lambda r: Mood(status=500), lambda r: Mood(status=429), lambda r: Mood(status=429, headers={"Retry-After": "0"}), lambda r: Mood(body=HTML, kind="text/html"),
        lambda r: Mood(body=HTML), lambda r: Mood(stop=r.random()), lambda r: Mood(stop=r.random(), ranges=False), lambda r: Mood(lie=r.randrange(1, 900)),
        lambda r: Mood(lie=-r.randrange(1, 900)), lambda r: Mood(kind="text/html; charset=utf-8"), lambda r: Mood(body=picture(7, True)), lambda r: Mood(body=b""),
        lambda r: Mood(latency=0.2), lambda r: Mood(status=503, headers={"Retry-After": "0"}))


def ill(share, seed=0, latency=0.0, gone=()):
    "A mood for `share` of the requests, always the same for the same request; 404 for what is `gone`"
    def mood(path, nth):
        if path in gone: return Mood(status=404, body=HTML)
        rng = random.Random(f"{seed} {path} {nth}")
        return rng.choice(ILLS)(rng) if rng.random() < share else Mood(latency=latency)
    return mood


def item(shot, base):
    "As `raw_image_items` lists it"
    return {"id": shot.n, "sol": shot.sol, "instrument": "NAV_LEFT_B", "imageid": shot.id, "https_url": base + shot.address, "url": base + shot.address, "mission": "msl",
            "date_taken": f"2014-05-{1 + shot.sol % 28:02}T10:{shot.n // 60 % 60:02}:{shot.n % 60:02}.000Z", "date_received": None, "site": "48", "drive": "1570", "spacecraft_clock": 486272784.0 + shot.n,
            "subframe_rect": f"(1,1,{shot.side},{shot.side})", "is_thumbnail": False,
            "extended": {"sample_type": "full", "mast_az": str(shot.n * 37 % 360), "mast_el": "UNK"}}


def image(shot, base):
    "As the service of Perseverance lists it"
    return {"imageid": shot.id, "sol": shot.sol, "sample_type": "Full", "date_taken_utc": "2023-09-07T01:02:03.500", "camera": {"instrument": "NAVCAM_LEFT", "filter_name": "UNK"},
            "image_files": {"full_res": base + shot.address}, "extended": {"dimension": f"({shot.side},{shot.side})"}}


class Server(ThreadingHTTPServer):
    "Serves `shots`; threads, one connection each"
    daemon_threads, request_queue_size = True, 256

    def __init__(self, shots=(), files=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.shots, self.files, self.mood, self.before = list(shots), dict(files or {}), calm, lambda path: None
        self.lock, self.url = threading.Lock(), f"http://127.0.0.1:{self.server_port}"
        self.forget()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def forget(self): self.asked, self.times, self.now, self.most, self.by_address = Counter(), defaultdict(list), 0, 0, None

    def handle_error(self, *args): pass

    def body_of(self, path, query):
        "The bytes at a path, or None"
        if (found := self.files.get(path)) is not None: return found
        if path.startswith("/raw/"):
            if self.by_address is None or len(self.by_address) != len(self.shots): self.by_address = {s.address: s for s in self.shots}
            return self.by_address[path].body if path in self.by_address else None
        newest = max((s.sol for s in self.shots), default=0)
        if path == "/api/v1/raw_image_items/":
            asked = re.match(r"(\d+):sol:in", query.get("condition_2", ""))
            found = [s for s in reversed(self.shots) if s.sol == (int(asked[1]) if asked else newest)]
            n, page = int(query.get("per_page", 100)), int(query.get("page", 0))
            rows = [item(s, self.url) for s in found[n * page:n * (page + 1)]]
            return json.dumps({"items": rows, "more": n * (page + 1) < len(found), "total": len(found), "page": page, "per_page": n}).encode()
        if path == "/rss/api/":
            if query.get("latest"): return json.dumps({"latest_sol": newest, "total": len(self.shots)}).encode()
            found = [s for s in reversed(self.shots) if "sol" not in query or s.sol == int(query["sol"])]
            page = int(query.get("page", 0))
            return json.dumps({"images": [image(s, self.url) for s in found[100 * page:100 * (page + 1)]], "total_results": len(found), "page": page}).encode()
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def log_message(self, *args): pass

    def do_GET(self):
        s, parts = self.server, urlsplit(self.path)
        with s.lock:
            s.before(parts.path)
            nth, s.asked[self.path] = s.asked[self.path], s.asked[self.path] + 1
            s.now, s.most = s.now + 1, max(s.most, s.now + 1)
            s.times[parts.path].append(time.monotonic())
            body = s.body_of(unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()})
        mood = s.mood(self.path if parts.query else parts.path, nth)
        time.sleep(mood.latency)
        with s.lock: s.now -= 1 # before the last byte can arrive, and with it the next request
        self.send(mood, HTML if body is None else body, 404 if body is None else mood.status)

    def send(self, mood, body, status):
        body = body if mood.body is None and status == 200 else mood.body or b""
        tag = f'"{zlib.crc32(body):08x}"'
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and status == 200 and mood.ranges and self.headers.get("If-Range", tag) == tag else 0
        if start and start >= len(body): status, mood, headers, rest = 416, Mood(), {"Content-Range": f"bytes */{len(body)}"}, b""
        else:
            headers, rest = ({"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}), body[start:]
            status = 206 if start else status
        length = max(0, len(rest) + mood.lie)
        self.send_response(status)
        for k, v in (headers | {"ETag": tag, "Content-Type": mood.kind or "image/jpeg", "Content-Length": str(length)} | mood.headers).items(): self.send_header(k, v)
        self.end_headers()
        stop = len(rest) if mood.stop is None else int(mood.stop * len(rest))
        self.wfile.write(rest[:min(stop, length)])
        self.close_connection = stop < len(rest) or mood.lie != 0
