"""Thousands of photographs through a server that misbehaves, from a process that is killed again and again; every byte compared with a calm run

    python benchmarks/soak.py [IMAGES [KILLS [SHARE]]]

The server (tests/server.py) answers SHARE of the requests with 429, 500, 503, HTML with status 200, half a body, a wrong Content-Length, another image, nothing
or a lie about the type; its pages shift because photographs arrive while it is listed; one photograph in a hundred is not there. Writes soak.json beside this file.
"""
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from server import Server, calm, ill, shots

from planetlab.archive import Archive, find, overview, reasons, want
from planetlab.collect import Manners, iter_collect, iter_sync
from planetlab.core import file_digest, write_json
from planetlab.feeds import Patience
from planetlab.sources import curiosity

MANNERS = Manners(per_host=8, threads=12, wait_s=0.02)


def collect_all(folder: Path, base: str, progress=None) -> None:
    "What a user does every day: list, want, fetch; `progress` counts pages listed and photographs answered"
    def count(place):
        if progress is not None: progress[place] += 1
    archive = Archive(folder)
    for _ in iter_sync(archive, curiosity(base), patience=Patience(tries=8, wait_s=0.02)): count(0)
    want(archive)
    for _ in iter_collect(archive, manners=MANNERS): count(1)


def tree(folder: Path) -> dict[str, str]:
    "Hash of every photograph by path; hidden folders and the catalogue are no photographs"
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in folder.glob("[!.]*/**/*") if p.is_file()}


def arrive(server: Server, late: list, rng: random.Random):
    "Photographs arrive while the server is listed"
    def before(path):
        if not path.startswith("/raw/") and late and rng.random() < 0.5: server.shots.append(late.pop())
    return before


def killed(context, folder: Path, server: Server, late: list, kills: int, rng: random.Random, whole: dict) -> dict:
    "Run until it has been killed so often, one time in five while it lists, else while it fetches; then until nothing is left to do"
    done, partial, runs, at = 0, 0, 0, []
    while True:
        progress, place = context.Array("i", 2, lock=False), int(rng.random() > 0.2)
        child = context.Process(target=collect_all, args=(folder, server.url, progress))
        after = rng.randrange(25) if place == 0 else rng.randrange(2 * len(whole) // kills)
        child.start()
        runs += 1
        while done < kills and child.is_alive() and progress[place] <= after: time.sleep(0.002)
        if done < kills: time.sleep(rng.uniform(0, 0.05))
        else: child.join()
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            done += 1
            here = tree(folder) if done % 5 == 0 else {}
            partial += sum(whole.get(path) != sha for path, sha in here.items())
            at.append(sum(1 for _ in folder.glob("[!.]*/*/*")))
        elif child.exitcode: print(f"run {runs} ended with {child.exitcode}")
        elif not late and done >= kills and set(tree(folder)) == set(whole): return {"kills": done, "runs": runs, "photographs_at_each_kill": at, "partial_files_seen": partial}
        if runs > kills + 40: return {"kills": done, "runs": runs, "photographs_at_each_kill": at, "partial_files_seen": partial, "gave_up": True}
        if done >= kills: # the rest arrives
            server.shots += late
            late.clear()


def main(n: int = 5000, kills: int = 50, share: float = 0.3) -> None:
    rng, all_shots = random.Random(1), shots(n, sols=25)
    gone = frozenset(s.address for s in all_shots[::100])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soak", "planetlab.collect", "planetlab.sources"])
    root = Path(tempfile.mkdtemp(prefix="soak"))
    try:
        server = Server(all_shots)
        server.mood = lambda path, nth: ill(0, gone=gone)(path, nth)
        begin = time.perf_counter()
        child = context.Process(target=collect_all, args=(root / "calm", server.url))
        child.start()
        child.join()
        calm_s, whole = time.perf_counter() - begin, tree(root / "calm")
        print(f"calm: {len(whole)} photographs in {calm_s:.0f} s", flush=True)
        late = all_shots[::-1][:n // 5]
        server = Server(all_shots[:n - n // 5])
        server.mood, server.before = ill(share, gone=gone), arrive(server, late, rng)
        begin = time.perf_counter()
        told = killed(context, root / "killed", server, late, kills, rng, whole)
        took, here, archive = time.perf_counter() - begin, tree(root / "killed"), Archive(root / "killed")
        table = find(archive)
        noted = dict(zip(table.path[table.state == "got"], table.sha256[table.state == "got"]))
        calm_table = find(Archive(root / "calm"))
        result = told | {"images": n, "misbehaving_share": share, "calm_s": round(calm_s, 1), "killed_s": round(took, 1), "requests": sum(server.asked.values()),
                         "calm_tree": len(whole), "killed_tree": len(here), "trees_and_hashes_equal": here == whole, "hashes_in_catalogue_equal": noted == whole,
                         "lost": len(set(whole) - set(here)), "records_equal": set(table.id) == set(calm_table.id), "states": overview(archive).sum()[["listed", "wanted", "got", "missing"]].astype(int).to_dict(),
                         "reasons": reasons(archive).to_dict(), "left_lying_about": sum(1 for p in (root / "killed" / ".incoming").glob("*")), "cpus": os.cpu_count()}
        write_json(Path(__file__).with_suffix(".json"), result)
        print({k: v for k, v in result.items() if k != "photographs_at_each_kill"})
        if not (result["trees_and_hashes_equal"] and result["hashes_in_catalogue_equal"] and result["records_equal"] and not result["partial_files_seen"]): sys.exit(1)
    finally: shutil.rmtree(root)


if __name__ == "__main__": main(*(t(v) for t, v in zip((int, int, float), sys.argv[1:])))
