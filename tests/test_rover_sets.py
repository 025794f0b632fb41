"Data sets of a folder of rover frames: nothing torn, nothing touched, nothing dropped without a reason"
import shutil
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import execute, real
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from planetlab.core import BadInput, ModelMismatch, file_digest
from planetlab.folders import read_table
from planetlab.review import read_frame, show_review
from planetlab.rover_sets import SETS, Plan, build_sets, check_set, group_names, iter_measured, judge_set, read_measured, rover_table, split_set
from planetlab.worlds.downlink import write_downlink

PLAN = Plan(scale=0.15)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rover") / "downlink"
    return folder, write_downlink(folder, 75, np.random.default_rng(2), 128).set_index("path")


@pytest.fixture(scope="module")
def made(world, tmp_path_factory): return build_sets(world[0], tmp_path_factory.mktemp("sets"), PLAN, rng=np.random.default_rng(0))


def test_every_file_is_in_one_set_with_a_decision(world, made):
    everything = pd.concat(made.values())
    assert sorted(everything.id) == sorted(world[1].index) and (everything.kept == (everything.reason == "")).all() and (everything.kept == (everything.split != "")).all()
    fault = world[1].fault[everything.id].to_numpy()
    assert not everything.kept[np.isin(fault, ["black", "flat", "small", "cut", "grey"])].any()
    assert everything.kept[np.isin(fault, ["dark", "bluish", "none"])].sum() > 20


def test_originals_stay_and_the_table_leads_to_them(world, tmp_path):
    before = {p: file_digest(world[0] / p) for p in world[1].index}
    sets = build_sets(world[0], tmp_path / "out" / "deep", PLAN, rng=np.random.default_rng(0))
    assert before == {p: file_digest(world[0] / p) for p in world[1].index}
    for name, t in sets.items():
        listed = read_table(tmp_path / "out" / "deep" / f"{name}.parquet")
        assert listed.id.tolist() == t.id.tolist() and listed.split.tolist() == t.split.tolist() and "thumb" not in listed
        if t.kept.any(): np.testing.assert_array_equal(*(read_frame(next(x[x.kept].itertuples()))[0] for x in (listed, t)))
    assert {p.name for p in (tmp_path / "out" / "deep").iterdir()} == {"measure.parquet", *(f"{n}.parquet" for n in sets)}


def test_an_archive_is_as_good_as_a_folder(world, made, tmp_path):
    shutil.make_archive(str(tmp_path / "packed"), "zip", world[0])
    packed = build_sets(tmp_path / "packed.zip", tmp_path / "sets", PLAN, rng=np.random.default_rng(0))
    for name, t in made.items():
        pd.testing.assert_frame_equal(t.drop(columns=["path", "member"]), packed[name].drop(columns=["path", "member"]))
    img, valid = read_frame(next(packed["curiosity_navcam_gray"].query("kept").itertuples()))
    assert img.shape[1:] == valid.shape and img.any()


def test_hostile_files_are_rows_with_a_problem(world, tmp_path):
    folder = tmp_path / "frames"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    good = next(p for p in world[1].index if world[1].fault[p] == "none" and "/NAVCAM/" in p)
    for where in "ab": shutil.copy(world[0] / good, folder / where / good.rsplit("/")[-1]) # one name, two folders
    name = good.rsplit("/")[-1]
    (folder / f"NLA_000000001{name[13:]}").write_bytes(b"")
    (folder / f"NLA_400000002{name[13:]}").write_text("<html>404</html>")
    Image.fromarray(np.zeros((40, 40, 4), "uint8"), "CMYK").save(folder / f"NLA_400000003{name[13:]}")
    (folder / "notes.jpg").write_text("no rover")
    t = build_sets(folder, tmp_path / "sets", Plan(scale=0.1), rng=np.random.default_rng(0))["curiosity_navcam_gray"]
    assert len(t) == 5 and t.kept.sum() == 1 and (t.failed == "copy").sum() == 1 and (t.failed == "problem").sum() >= 2
    assert "unreadable" in t.reason[t.failed == "problem"].iloc[0] and str(tmp_path) not in "".join(t.reason)
    show_review(t, 3)


def test_a_stopped_measurement_goes_on_and_changed_files_are_not_taken_for_the_old(world, tmp_path):
    table, path = rover_table(world[0]), tmp_path / "m.parquet"
    stopped = iter_measured(table, path, workers=1, batch=20)
    next(stopped)
    stopped.close()
    assert not path.exists()
    indices = [p.index for p in iter_measured(table, path, batch=20)]
    assert indices == list(range(-(-len(table) // 20))) and not [*iter_measured(table, path, batch=20)]
    with pytest.raises(ModelMismatch, match="files was"): [*iter_measured(table[1:], path)]
    assert len(read_measured(table, path)) == len(table)


@given(st.integers(0, 9999), st.sampled_from(("sol", "sequence", "pair")), st.booleans())
@settings(max_examples=15, deadline=None)
def test_no_group_no_pair_and_no_copy_is_ever_torn(seed, level, unknown):
    rng, n = np.random.default_rng(seed), 60
    sol = np.sort(rng.integers(1, 15, n))
    t = pd.DataFrame({"id": [f"f{i}" for i in range(n)], "mission": "curiosity", "camera": "navcam", "sol": pd.array(sol, "Int64"), "sequence": rng.choice(list("abc"), n), "kept": rng.random(n) < 0.9, "failed": "", "reason": ""})
    t["pair"] = [f"{s} {q} {rng.integers(3)}" for s, q in zip(t.sol, t.sequence)]
    if unknown: # names that follow no convention
        lost = rng.random(n) < 0.3
        t.loc[lost, ["sol", "sequence"]] = pd.NA, ""
        t["pair"] = t.pair.where(~lost, t.id)
    looks = rng.normal(0, 1, (20, 256)).astype("float32")[rng.integers(0, 20, n)] + rng.normal(0, 0.01, (n, 256)).astype("float32")
    t["thumb"] = [x.tobytes() for x in looks]
    with warnings.catch_warnings(action="ignore"): dealt = split_set(t, Plan(level=level), rng=np.random.default_rng(0))
    kept = dealt[dealt.kept]
    for groups in (kept.group, kept.pair, pd.Series(group_names(kept, level), kept.index) if dealt.group.tolist() == group_names(dealt, level).tolist() else kept.group):
        assert kept.groupby(groups).split.nunique().max() <= 1
    unit = looks[dealt.kept] / np.linalg.norm(looks[dealt.kept], axis=1, keepdims=True)
    split = kept.split.to_numpy()
    assert not ((unit @ unit.T >= 0.98) & (split[:, None] != split)).any()
    assert (dealt.failed[t.kept & ~dealt.kept] == "leak").all() and (dealt.kept <= t.kept).all()


def test_a_torn_table_is_refused(made):
    t = made["curiosity_navcam_gray"]
    torn = t.assign(split=np.where(t.kept, np.where(np.arange(len(t)) % 2, "train", "test"), ""))
    with pytest.raises(BadInput, match="several splits"): check_set(torn)


def test_the_pipeline_says_what_was_planted(tmp_path):
    metrics = execute("rover_dataset_smoke", tmp_path / "run")
    assert metrics["planted"]["black"]["kept"] == 0 and metrics["planted"]["none"]["kept"] > 20
    assert sum(metrics["n"]["curiosity_navcam_gray"].values()) == len(pd.read_parquet(tmp_path / "run" / "sets" / "curiosity_navcam_gray.parquet"))
    assert {f"review_{n}.png" for n in metrics["n"]} <= {p.name for p in (tmp_path / "run").iterdir()} and set(metrics["n"]) == {*SETS}
    with pytest.raises(BadInput, match="wanted one of ours, seed"): execute("rover_dataset_smoke", tmp_path / "none", rules="mine")


def test_real_names_tell_what_the_publishers_tables_tell():
    folder = real("mars_rocks_marsdata")
    known = pd.read_csv(folder / "index.csv").set_index("name")
    t = rover_table(folder / "images")
    assert t.sol.tolist() == known.sol[t.id.str.removesuffix(".jpg")].tolist() and set(t.camera) == {"mastcam"} and set(t.mission) == {"curiosity"}
    labels = pd.read_csv(real("msl_curiosity_v1") / "labels.csv").set_index("filename")
    t = rover_table(real("msl_curiosity_v1") / "images.zip")
    assert t.sol.tolist() == labels.sol[t.id].tolist()
    theirs = labels.camera[t.id].map({"Mastcam-Left": "mastcam left", "Mastcam-Right": "mastcam right", "MAHLI": "mahli"})
    assert (t.camera + " " + t.side).str.strip().tolist() == theirs.tolist()


def test_the_five_sets_of_two_real_frames(tmp_path):
    sets = build_sets(real("rover_raw_images"), tmp_path, Plan(), rng=np.random.default_rng(0))
    assert set(sets) == {"curiosity_navcam_gray", "perseverance_mast_color"}
    clouds, single_filter = sets["curiosity_navcam_gray"].iloc[0], sets["perseverance_mast_color"].iloc[0]
    assert clouds.kept and clouds.split == "train" and single_filter.failed == "chroma" # grey, stored in three channels
    measured = read_measured(rover_table(real("rover_raw_images")), tmp_path / "measure.parquet")
    assert judge_set(measured, SETS["curiosity_navcam_gray"], Plan(scale=10)).failed.tolist() == ["side"]
