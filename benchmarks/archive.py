"""How fast an archive is filled and asked, and how fast photographs come from a server 20 ms away, beside plain loops in threads

    python benchmarks/archive.py [RECORDS [PHOTOGRAPHS]]

Plain loops: `requests.get` per file, and one shared `httpx.Client`, in a pool of threads; they write what comes, unchecked. `iter_collect` decodes, hashes, syncs to the disk
and notes each. Equal parallelism: as many requests at a time. Median of three rounds, the ways taking turns. Writes archive.json beside this file.
"""
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import requests

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from server import Mood, Server, shots

from planetlab.archive import Archive, Query, add_records, find, want
from planetlab.collect import Manners, iter_collect
from planetlab.core import file_digest, write_json
from planetlab.records import Record

CAMERAS = ("navcam", "mastcam", "front hazcam", "rear hazcam", "chemcam", "mahli")


def rss_mb() -> float: return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def many(n: int, memory: list):
    "Records of a rover, some three hundred a sol"
    for i in range(n):
        if i % (n // 10) == 0: memory.append(round(rss_mb(), 1))
        sol, second = i // 300, i % 86400
        yield Record("curiosity", f"NLB_{486272784 + i:09}EDR_F0481570NCAM00{i % 900:03}M_", sol, CAMERAS[i % 6], ("left", "right")[i // 6 % 2], sample=("full", "thumbnail", "subframe")[i // 12 % 3],
                     colour=("grey", "colour")[i % 6 == 1], utc=f"20{12 + sol // 360:02}-{1 + sol // 30 % 12:02}-{1 + sol % 28:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.000000Z",
                     clock=486272784.0 + i, site=sol // 50, drive=i % 3000, azimuth_deg=i * 7.31 % 360, elevation_deg=i * 3.7 % 120 - 60, width=1024, height=1024,
                     urls=(f"https://mars.nasa.gov/msl-raw-images/proj/msl/redops/ods/surface/sol/{sol:05}/opgs/edr/ncam/NLB_{486272784 + i:09}EDR_F0481570NCAM00{i % 900:03}M_.JPG",))


def catalogue(folder: Path, n: int) -> dict:
    "Fill an archive, list the newest sols again, ask it"
    archive, memory = Archive(folder), []
    begin = time.perf_counter()
    add_records(archive, many(n, memory))
    rate = n / (time.perf_counter() - begin)
    begin = time.perf_counter()
    again = add_records(archive, many(60_000, []))
    rate_again = 60_000 / (time.perf_counter() - begin)
    mid = n // 600
    queries = {"left navcam, full, 100 sols": Query(camera="navcam", side="left", sample="full", sols=(mid, mid + 99)), "one sol": Query(sols=(mid, mid)),
               "colour of one sol": Query(sols=(mid, mid), colour="colour"), "one day": Query(utc=("2014-03-05", "2014-03-05")),
               "a direction of 0.2 degrees": Query(azimuth_deg=(10, 10.2), elevation_deg=(-10, -5)), "one camera in 20 sols": Query(camera="mahli", sols=(mid, mid + 19)), "missing": Query(state="missing")}
    asked = {}
    for name, query in queries.items():
        took = []
        for _ in range(9):
            begin = time.perf_counter()
            rows = len(find(archive, query))
            took.append(1e3 * (time.perf_counter() - begin))
        asked[name] = {"rows": rows, "ms": round(statistics.median(took), 1), "ms_worst_of_9": round(max(took), 1)}
    return {"records": n, "ingest_per_s": round(rate), "unchanged_again_per_s": round(rate_again), "changed_by_adding_again": again.changed, "memory_mb_at_each_tenth": memory,
            "file_mb": round(archive.database.stat().st_size / 1e6), "bytes_per_record": round(archive.database.stat().st_size / n), "queries": asked}


def serve(pipe, n: int, latency: float) -> None:
    server = Server(shots(n, side=256))
    server.mood = lambda path, nth: Mood(latency=latency)
    for s in server.shots: s.body
    pipe.send(server.url)
    pipe.recv()


def with_requests(urls: list[str], folder: Path, workers: int) -> None:
    def get(url): (folder / url.split("/")[-1]).write_bytes(requests.get(url, timeout=30).content)
    with ThreadPoolExecutor(workers) as pool: list(pool.map(get, urls))


def with_httpx(urls: list[str], folder: Path, workers: int) -> None:
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda url: (folder / url.split("/")[-1]).write_bytes(client.get(url).content), urls))


def with_archive(urls: list[str], folder: Path, workers: int) -> None:
    archive = Archive(folder)
    add_records(archive, [Record("curiosity", url.split("/")[-1][:-4], 1, urls=(url,)) for url in urls])
    want(archive)
    for a in iter_collect(archive, manners=Manners(per_host=workers, threads=workers + 4)): assert a.state == "got"


def downloads(root: Path, url: str, n: int, workers: int) -> dict:
    "Seconds of each way, and whether the bytes are the same"
    urls, took, hashes = [f"{url}/raw/{i:06}.JPG" for i in range(n)], {}, []
    for round_ in range(3):
        for way in (with_requests, with_httpx, with_archive):
            folder = root / f"{way.__name__}{workers}{round_}"
            folder.mkdir()
            begin = time.perf_counter()
            way(urls, folder, workers)
            took.setdefault(way.__name__, []).append(time.perf_counter() - begin)
            if not round_: hashes.append(sorted(file_digest(p) for p in folder.rglob("*.JPG")))
            shutil.rmtree(folder)
    seconds = {k: round(statistics.median(v), 2) for k, v in took.items()}
    return {"requests_at_a_time": workers, "seconds": seconds, "rounds": {k: [round(x, 2) for x in v] for k, v in took.items()}, "per_s": {k: round(n / v) for k, v in seconds.items()},
            "latency_bound_per_s": round(workers / 0.02), "same_bytes": hashes[0] == hashes[1] == hashes[2]}


def main(n: int = 1_500_000, photographs: int = 400) -> None:
    root, (here, there) = Path(tempfile.mkdtemp(prefix="bench")), multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there, photographs, 0.02))
    server.start()
    try:
        url, load = here.recv(), os.getloadavg()
        table = [downloads(root, url, photographs, workers) for workers in (2, 4, 8)]
        for row in table: print(row, flush=True)
        filled = catalogue(root / "catalogue", n)
        print(filled)
        write_json(Path(__file__).with_suffix(".json"), {"catalogue": filled, "downloads": table, "photographs": photographs, "latency_s": 0.02, "photograph_bytes": len(shots(1, side=256)[0].body),
                                                        "cpus": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()})
    finally:
        here.send("done")
        server.join()
        shutil.rmtree(root)


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
