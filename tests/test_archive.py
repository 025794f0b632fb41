"An archive under kills, lies, refusals and hostile names; what it is asked, what it freezes"
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import command_here, real
from hypothesis import given, settings
from hypothesis import strategies as st
from server import HTML, Mood, Server, ill, picture, shots

from planetlab import collect, download
from planetlab.archive import STATES, Archive, Query, add_records, connect, find, image_path, overview, reasons, want, where
from planetlab.collect import Manners, iter_collect, iter_sync
from planetlab.core import CannotWrite, file_digest
from planetlab.feeds import Patience
from planetlab.manifest import iter_verify, read_manifest, write_manifest
from planetlab.records import Record
from planetlab.sources import curiosity, manifest_2015, perseverance

QUICK = Manners(per_host=4, threads=6, wait_s=0.01)
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks are POSIX")


@pytest.fixture(scope="module")
def one_server():
    s = Server()
    yield s
    s.shutdown()
    s.server_close()


@pytest.fixture
def server(one_server):
    one_server.__dict__.update(shots=shots(12), files={}, mood=lambda path, nth: Mood(), before=lambda path: None)
    one_server.forget()
    return one_server


def listed(folder, server, **kwargs):
    archive = Archive(folder)
    for _ in iter_sync(archive, curiosity(server.url), patience=Patience(tries=8, wait_s=0.01), **kwargs): pass
    return archive


def tree(archive): return {p.relative_to(archive.folder).as_posix(): file_digest(p) for p in Path(archive.folder).glob("[!.]*/**/*") if p.is_file()}
def noted(archive): return {r.path: r.sha256 for r in find(archive, Query(state="got")).itertuples()}


def collected(folder, server):
    archive = listed(folder, server)
    want(archive)
    for _ in iter_collect(archive, manners=QUICK): pass
    return archive


def dies_after(events, folder, server):
    "Run in a child: SIGKILL at the given write, rename, removal or note"
    lock, left = threading.Lock(), [events]
    def mortal(fn):
        def deadly(*args, **kwargs):
            with lock:
                left[0] -= 1
                if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
            return fn(*args, **kwargs)
        return deadly
    os.fsync, os.replace, shutil.rmtree, collect.answer = map(mortal, (os.fsync, os.replace, shutil.rmtree, collect.answer))
    download.shutil.disk_usage = mortal(shutil.disk_usage)
    collected(folder, server)
    os._exit(0)


@posix
@settings(deadline=None, max_examples=3)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=2), st.integers(0, 99))
def test_after_any_kill_a_rerun_gives_the_same_tree(one_server, points, seed):
    one_server.__dict__.update(shots=shots(8, sols=2), files={}, before=lambda path: None, mood=lambda path, nth: Mood())
    one_server.forget()
    with tempfile.TemporaryDirectory() as tmp:
        whole = tree(collected(f"{tmp}/calm", one_server))
        one_server.mood = ill(0.3, seed)
        for events in points:
            child = multiprocessing.get_context("fork").Process(target=dies_after, args=(events, f"{tmp}/killed", one_server))
            child.start()
            child.join()
            assert child.exitcode in (0, -signal.SIGKILL)
            assert tree(Archive(f"{tmp}/killed")).items() <= whole.items() # nothing partial
        one_server.mood = lambda path, nth: Mood()
        archive = collected(f"{tmp}/killed", one_server)
        assert tree(archive) == noted(archive) == whole
        assert not [*Path(tmp, "killed", ".incoming").glob("*")]


@posix
def test_ctrl_c_leaves_a_consistent_archive(server, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler) # a shell may have started this in the background, deaf to it
    server.shots = shots(40)
    server.mood = lambda path, nth: Mood(latency=0.02)
    archive = listed(tmp_path, server)
    want(archive)
    with pytest.raises(KeyboardInterrupt):
        for i, _ in enumerate(iter_collect(archive, manners=QUICK)):
            if i == 5: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert 5 < overview(archive).got.sum() < 40 and tree(archive) == noted(archive)
    left = int(overview(archive).wanted.sum())
    assert len(list(iter_collect(archive, manners=QUICK))) == left and len(noted(archive)) == 40


LIES = {"500 twice": ([Mood(status=500)] * 2, "got"), "429": ([Mood(status=429)], "got"), "html with 200": ([Mood(body=HTML)] * 2, "got"), "half": ([Mood(stop=0.5)] * 3, "got"),
        "half, no ranges": ([Mood(stop=0.5, ranges=False)], "got"), "too long": ([Mood(lie=500)], "got"), "too short": ([Mood(lie=-30)], "got"), "a lying type": ([Mood(kind="text/html")] * 9, "got"),
        "a PNG": ([Mood(body=picture(3, True))], "got"), "another size": ([Mood(body=picture(3, False, 64))], "got"), "empty": ([Mood(body=b"")], "missing"),
        "404": ([Mood(status=404)] * 9, "missing"), "410": ([Mood(status=410)] * 9, "missing"), "always html": ([Mood(body=HTML)] * 99, "missing"), "always 500": ([Mood(status=500)] * 99, "wanted"),
        "never whole": ([Mood(lie=-30)] * 99, "missing"), "come back in a year": ([Mood(status=429, headers={"Retry-After": "31536000"})], "wanted")}


@pytest.mark.parametrize("name", LIES)
def test_whatever_it_says_nothing_partial_is_kept(server, tmp_path, name, monkeypatch):
    moods, state = LIES[name]
    monkeypatch.setattr(collect, "PATIENCE_S", 0.05)
    server.shots = shots(2, sols=1)
    archive = listed(tmp_path, server)
    server.mood = lambda path, nth: moods[nth] if path.endswith("000001.JPG") and nth < len(moods) else Mood()
    want(archive)
    answers = {a.id: a for a in iter_collect(archive, manners=QUICK)}
    first, second = (answers[s.id] for s in server.shots)
    assert (first.state, second.state, bool(second.reason)) == ("got", state, state != "got")
    assert tree(archive) == noted(archive)
    for s in server.shots:
        if answers[s.id].state == "got": assert (tmp_path / answers[s.id].path).read_bytes() == s.body


def test_all_threads_wait_when_one_is_told_to(server, tmp_path):
    server.shots = shots(30)
    archive = listed(tmp_path, server)
    server.mood = lambda path, nth: Mood(status=429, headers={"Retry-After": "2"}) if path.endswith("000005.JPG") and not nth else Mood(latency=0.01)
    want(archive)
    server.times.clear()
    assert {a.state for a in iter_collect(archive, manners=QUICK)} == {"got"}
    told = server.times["/raw/000005.JPG"][0]
    times = sorted(t for ts in server.times.values() for t in ts)
    assert not [t for t in times if told + 1 < t < told + 1.9] and server.most <= QUICK.per_host


NASTY = ["../../../etc/passwd", "/etc/passwd", "a" * 300, "CON", "nul.jpg", ".hidden", "a\x00b", "a\nb", "..", "a/../b", "\u202egpj.exe", "NLA ", "x" * 120 + ".", "nlb_1", "NLB_1"]


def test_nasty_names_stay_inside(server, tmp_path):
    server.shots = [s._replace(id=id) for s, id in zip(shots(len(NASTY), sols=2), NASTY)]
    (tmp_path / "in").mkdir()
    archive = collected(tmp_path / "in", server)
    assert overview(archive).got.sum() == len(NASTY) and [p.name for p in tmp_path.iterdir()] == ["in"]
    assert len({p.casefold() for p in tree(archive)}) == len(NASTY) and set(tree(archive).values()) == set(noted(archive).values())


@settings(deadline=None, max_examples=25)
@given(st.text(min_size=1, max_size=40).filter(str.isprintable), st.text(min_size=1, max_size=40).filter(str.isprintable))
def test_two_names_are_never_one_file(a, b):
    one, two = (image_path(Record("curiosity", id, 3)) for id in (a, b))
    assert Path("/x", one).resolve().is_relative_to("/x/curiosity/00003") and (a == b) == (one.casefold() == two.casefold())


def test_pages_that_shift_lose_nothing(server, tmp_path):
    later = shots(420, sols=1)
    server.shots = later[:300]
    def arrive(path):
        if server.asked and len(server.shots) < 420: server.shots.append(later[len(server.shots)])
    server.before = arrive
    archive = listed(tmp_path, server)
    seen = set(find(archive).id)
    server.before = lambda path: None
    archive = listed(tmp_path, server)
    assert seen <= set(find(archive).id) == {s.id for s in server.shots}


def test_open_sols_again_closed_ones_never(server, tmp_path):
    server.shots = shots(60, sols=30)
    archive = listed(tmp_path, server, settle=10)
    server.forget()
    again = list(iter_sync(archive, curiosity(server.url), settle=10))
    assert [d.sol for d in again] == list(range(29, 19, -1)) and not sum(d.new for d in again)
    assert not [q for q in server.asked if "19%3Asol" in q]


def test_both_services_of_today_and_the_old_one(server, tmp_path):
    other = Archive(tmp_path / "p")
    list(iter_sync(other, perseverance(server.url)))
    assert set(find(other).mission) == {"perseverance"} and len(find(other)) == 12
    for sol in (1, 3, 10): server.files[f"/image/images_sol{sol}.json"] = real(f"rover_feeds/msl_raw_images_2015/images_sol{sol}.json").read_bytes()
    old = Archive(tmp_path / "old")
    server.files["/image/image_manifest.json"] = real("rover_feeds/msl_raw_images_2015/image_manifest.json").read_bytes()
    for sol, n in ((1, 20), (3, 372), (10, 40)):
        done, = iter_sync(old, manifest_2015(server.url + "/image"), (sol, sol))
        assert (done.n, done.new, done.closed) == (n, n, True)
    navcam = find(old, Query(camera="navcam", sols=(10, 10), sample="full"))
    assert len(navcam) == 4 and (navcam.width == 1024).all()


RECORDS = [Record("curiosity", f"R{i}", i % 7 if i % 11 else None, ("navcam", "mastcam")[i % 2], ("left", "right", "")[i % 3], azimuth_deg=i * 37.0 % 360 if i % 5 else None,
                  utc=f"2014-0{1 + i % 9}-03T04:05:06.000000Z" if i % 4 else "", urls=("http://x/a.JPG",)) for i in range(200)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    archive = Archive(tmp_path_factory.mktemp("asked"))
    add_records(archive, RECORDS)
    return archive


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["", "navcam", "x' OR 1=1 --"]), st.sampled_from(["", "left", "right"]), st.tuples(st.integers(0, 7), st.integers(0, 7)), st.tuples(st.integers(0, 359), st.integers(0, 359)),
       st.sampled_from([None, ("2014-02", "2014-04"), ("2014-03-03T04", None), (None, "2014")]))
def test_a_query_finds_what_a_loop_finds(asked, camera, side, sols, azimuth, utc):
    sols = tuple(sorted(sols))
    query = Query(camera=camera, side=side, sols=sols, azimuth_deg=azimuth, utc=utc)
    def fits(r):
        lo, hi = azimuth
        return (camera in ("", r.camera) and side in ("", r.side) and r.sol is not None and sols[0] <= r.sol <= sols[1] and r.azimuth_deg is not None
                and (lo <= r.azimuth_deg <= hi if lo <= hi else r.azimuth_deg >= lo or r.azimuth_deg <= hi)
                and (utc is None or (utc[0] or "0") <= r.utc <= (utc[1] or "9") + "~"))
    assert set(find(asked, query).id) == {r.id for r in RECORDS if fits(r)}


def test_what_is_in_place_but_not_noted_is_judged_not_fetched(server, tmp_path):
    archive = collected(tmp_path, server)
    before = noted(archive)
    cut = next(iter(before))
    (tmp_path / cut).write_bytes((tmp_path / cut).read_bytes()[:-9])
    with connect(archive) as con: con.execute("UPDATE images SET state = 'wanted', path = '', sha256 = '', n_bytes = NULL")
    server.forget()
    assert [a.state for a in iter_collect(archive, manners=QUICK)] == ["got"] * 12
    assert sum(server.asked.values()) == 1 and noted(archive) == tree(archive) == before


@pytest.mark.parametrize("query", [Query(camera="navcam", sols=(1, 2)), Query(camera="navcam", utc=("2014-02-03", "2014-02-03")), Query(mission="curiosity", azimuth_deg=(3, 4), camera="navcam"),
                                   Query(sols=(1, 1), colour="grey"), Query(width=(2000, None)), Query(mission="curiosity", sols=(1, 2), lmst_h=(11, 13)), Query(state="missing", mission="curiosity")])
def test_no_question_reads_every_row(asked, query):
    condition, values = where(query)
    with connect(asked) as con: plan, = {row[3] for row in con.execute(f"EXPLAIN QUERY PLAN SELECT * FROM images WHERE {condition}", values)}
    assert plan.startswith("SEARCH") and "(mission=?" not in plan and not plan.endswith("(camera=?)"), plan


def test_an_archive_of_an_older_version_is_opened(server, tmp_path):
    archive = collected(tmp_path, server)
    with connect(archive) as con: con.execute("ALTER TABLE images DROP COLUMN credit")
    assert find(archive).credit.eq("").all() and add_records(archive, [Record("curiosity", "X", credit="NASA")]).new == 1


def test_asking_while_another_process_fetches(server, tmp_path):
    archive = listed(tmp_path, server)
    want(archive)
    running = iter_collect(archive, manners=QUICK)
    next(running)
    assert len(find(archive)) == 12 and add_records(archive, RECORDS).new == 200
    with pytest.raises(CannotWrite, match="another process is fetching"): next(iter_collect(archive))
    assert len(list(running)) == 11


def test_a_colleague_gets_the_same_bytes_or_none(server, tmp_path):
    mine = collected(tmp_path / "mine", server)
    frozen = write_manifest(mine, tmp_path / "m.jsonl.gz")
    hers = Archive(tmp_path / "hers")
    assert read_manifest(hers, tmp_path / "m.jsonl.gz").wanted == 12
    server.mood = lambda path, nth: Mood(body=picture(999)) if path.endswith("000003.JPG") else Mood()
    assert sorted(a.state for a in iter_collect(hers, manners=QUICK)) == ["got"] * 11 + ["missing"]
    assert "another hash" in reasons(hers).index[0] and tree(hers).items() < tree(mine).items()
    server.mood = lambda path, nth: Mood()
    want(hers)
    assert [a.state for a in iter_collect(hers)] == ["got"] and tree(hers) == tree(mine)
    assert write_manifest(hers, tmp_path / "n.jsonl.gz") == frozen
    path = next(iter(tree(hers)))
    (tmp_path / "hers" / path).write_bytes(b"x")
    assert [v.path for v in iter_verify(hers, repair=True) if v.problem] == [path]
    assert [a.state for a in iter_collect(hers)] == ["got"] and tree(hers) == tree(mine)


def test_the_command_line(server, tmp_path):
    def says(*args): return command_here("archive", *args, cwd=tmp_path)
    assert says("find", "mars").returncode == 2
    assert says("sync", "mars", "curiosity", "--base", server.url).returncode == 0
    assert "nothing" in says("get", "mars", "-w", "sols=50..60").stderr
    server.mood = ill(0, gone={"/raw/000001.JPG"})
    got = says("get", "mars", "-w", "camera=navcam")
    assert (got.returncode, "11 here, 1 missing, 0 still wanted" in got.stdout, "404 Not Found" in got.stdout) == (1, True, True), got
    assert says("export", "mars", "m.jsonl").returncode == says("verify", "mars").returncode == says("import", "hers", "m.jsonl").returncode == says("get", "hers").returncode == 0
    assert says("import", "hers", "nothing.jsonl").returncode == 1 and says("sync", "mars", "venus").returncode == 2
    assert set(overview(Archive(tmp_path / "mars"))) >= set(STATES)


def test_memory_and_time_of_many_records(tmp_path):
    archive, begin = Archive(tmp_path), time.perf_counter()
    add_records(archive, (Record("curiosity", f"N{i}", i // 300, "navcam", urls=("http://x/a.JPG",)) for i in range(20_000)))
    assert time.perf_counter() - begin < 30 and len(find(archive, Query(sols=(10, 12)))) == 900
