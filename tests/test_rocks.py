"The rocks pipeline as a user runs it: its own world, somebody's masks, hostile files, stopped and resumed"
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import execute, finished
from PIL import Image
from sklearn.metrics import jaccard_score

from planetlab.core import BadInput, ModelMismatch
from planetlab.pairs import read_pair, read_pairs, write_pairs
from planetlab.share import load_model

FEW = {"epochs": 1, "steps": 2, "other_worlds": [], "draws": 20, "pixels": 100}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished("rocks", "rocks_smoke", tmp_path_factory.mktemp("rocks") / "run")


@pytest.fixture
def frames(run, tmp_path): # 20 frames of 10 terrains
    shutil.copytree(run / "world", tmp_path / "frames")
    return tmp_path / "frames"


def rocks(out, **given): return execute("rocks_smoke", out, **{**FEW, **given})
def ids(path): return np.asarray(Image.open(path))


def test_scores_are_those_of_the_maps_it_wrote(run):
    metrics, judged = json.loads((run / "metrics.json").read_text()), pd.read_csv(run / "judged.csv")
    table = read_pairs(run / "world").set_index("id", drop=False)
    truth = {i: read_pair(table.loc[i]).labels for i in judged.id}
    seen = set(table.group[[p.stem for p in (run / "found" / "split" / "places").glob("*.npz")]]) - set(judged.group)
    assert len(judged) == metrics["n"]["judged"] == metrics["n"]["split test"] and len(seen) == 1 # the terrain to choose by
    for who in ("network", "trees", "both"):
        found = {i: ids(run / "found" / "split" / who / f"{i}.png") for i in judged.id}
        assert all(f.shape == (96, 144) for f in found.values())
        rock = [np.isin(np.concatenate([v[i].ravel() for i in judged.id]), (1, 2)) for v in (truth, found)]
        assert metrics["scores"][who]["any rock iou"]["value"] == pytest.approx(jaccard_score(*rock), abs=1e-4)


def test_sizes_in_metres_only_where_ranges_are_known(run, frames, tmp_path):
    assert "diameter_m" in pd.read_csv(run / "rocks.csv")
    shutil.rmtree(frames / "ranges")
    index = pd.read_csv(frames / "index.csv").drop(columns=["ranges", "instances"])
    index.to_csv(frames / "index.csv", index=False)
    metrics = rocks(tmp_path / "run", data_dir=str(frames))
    assert "diameter_m" not in pd.read_csv(tmp_path / "run" / "rocks.csv") and not metrics["size-frequency"]


def test_what_was_outlined_is_not_outlined_again_and_nothing_changes(run, frames, tmp_path):
    first = rocks(tmp_path / "run", data_dir=str(frames))
    kept = sorted((tmp_path / "run" / "found" / "split" / "places").glob("*.npz"))
    kept[0].unlink()
    (tmp_path / "run" / "found" / "split" / "both" / f"{kept[0].stem}.png").unlink()
    before = kept[1].stat().st_mtime_ns
    assert rocks(tmp_path / "run", data_dir=str(frames)) == first and kept[0].exists() and kept[1].stat().st_mtime_ns == before


def test_bad_files_name_themselves_and_stop_nothing(frames, tmp_path, capsys):
    pairs = sorted((frames / "images").glob("*.png"))
    pairs[0].write_bytes(pairs[0].read_bytes()[:200])
    Image.fromarray(np.zeros((10, 10), "uint8")).save(frames / "masks" / pairs[1].name)
    (frames / "masks" / pairs[2].name).unlink()
    deep = np.asarray(Image.open(pairs[3])).astype("uint16") * 257
    (tmp_path / "own").mkdir()
    Image.fromarray(deep).save(tmp_path / "own" / "deep.png")
    Image.fromarray(np.dstack([ids(pairs[3])] * 3 + [np.full((96, 144), 255, "uint8")])).save(tmp_path / "own" / "clear.png")
    metrics = rocks(tmp_path / "run", data_dir=str(frames), test_dir=str(frames), frames_dir=str(tmp_path / "own"))
    said = capsys.readouterr().out
    assert all(p.name in said or p.stem in said for p in pairs[:3])
    assert metrics["n"]["split train"] + metrics["n"]["split val"] + metrics["n"]["split test"] == 17
    assert any(k.startswith("test_dir") for k in metrics["other worlds"]["both"])
    assert {p.name for p in (tmp_path / "run" / "frames").iterdir()} == {"deep.png", "clear.png", "rocks.csv"}


def test_a_licence_travels_into_the_model(run, frames, tmp_path):
    table = read_pairs(frames)
    both = [read_pair(row) for _, row in table.iterrows()]
    write_pairs(tmp_path / "set", [b.img for b in both], [b.labels for b in both])
    (tmp_path / "set" / "about.json").unlink() # then it is the publishers'
    with pytest.raises(BadInput, match="has no test and no val frames"): rocks(tmp_path / "none", data_dir=str(tmp_path / "set"), split="seed")
    metrics = rocks(tmp_path / "run", data_dir=str(tmp_path / "set"), split="random", pixels=0, with_trees=0)
    assert metrics["fitted"]["non_commercial"] and "NC" in metrics["fitted"]["licence"][0]
    with pytest.raises(ModelMismatch): load_model(tmp_path / "run" / "model" / "split_1", {"non_commercial": False})


@pytest.mark.parametrize("given,words", [
    ({"world": "MOON"}, "world"), ({"loss": "cross"}, "loss"), ({"split": "sol"}, "split"), ({"with_trees": 1.5}, "weight from 0 to 1"),
    ({"pixels": 0}, "pixels to grow trees from"), ({"data_dir": "nowhere"}, "nowhere"), ({"shrink": 0}, "shrink")])
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, given, words):
    with pytest.raises((BadInput, OSError), match=words): rocks(tmp_path / "run", **given)
    assert not (tmp_path / "run" / "model").exists()
