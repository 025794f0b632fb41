"The Discover pipeline as a user runs it: labelled, unlabelled, hostile"
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import command_here, execute, finished
from PIL import Image

from planetlab.core import BadInput
from planetlab.datasets import write_toy_msl
from planetlab.worlds.rover import rover_images

PARTS = ["all images", "all images, no near-duplicates", "val split", "val split, no near-duplicates", "test split"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished("discover", "discover_smoke", tmp_path_factory.mktemp("discover") / "run")


def discovered(out, **given):
    return execute("discover_smoke", out, **given), pd.read_parquet(Path(out) / "images.parquet")


FEW = {"methods": ["pixels"], "ks": [6], "joint": 0, "mean_shift": False, "view": "PCA"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    images, table = rover_images(60, np.random.default_rng(3), 32)
    folder = tmp_path_factory.mktemp("pictures")
    for i, (image, group) in enumerate(zip(images, table.group)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"sol{group}_Олимп_{i:04}.png")
    return folder


def test_every_score_stands_beside_chance(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["clusters"]) >= {*PARTS, "2 folds by group"}
    groups = pd.read_parquet(run / "images.parquet").groupby("split").group.nunique()
    assert groups["val"] > 1 == groups["test"]
    for name, part in metrics["clusters"].items():
        for row in part.values():
            assert {"k", "n", "purity", "purity_random", "nmi_random"} <= row.keys() and row["purity_random"] <= 1
            if name.startswith("test split"): assert not {"purity_low", "purity_high"} & row.keys() # one group has no interval
            else: assert row["purity_low"] <= row["purity"] <= row["purity_high"]
    assert all("carried" in row for row in metrics["clusters"]["val split"].values())
    assert not any("carried" in row for row in metrics["clusters"]["all images"].values())
    assert all(row["accuracy_null"] < 0.6 and row["accuracy_majority"] > 0 for row in metrics["classifiers"]["train to val"].values())
    assert all({"purity_low", "purity_random"} <= row.keys() for c in metrics["curves"].values() for each in c.values() for row in each.values())
    assert len(metrics["novelty"]) >= 1 and all("fused" in rankers for rankers in metrics["novelty"].values())


def test_each_camera_is_judged_apart(run):
    metrics, images = json.loads((run / "metrics.json").read_text()), pd.read_parquet(run / "images.parquet")
    val = images[(images.split == "val") & (images.label >= 0)]
    assert len(metrics["cameras"]) == val.instrument.nunique() > 1
    for camera, rows in metrics["cameras"].items():
        assert {row["n"] for row in rows.values()} == {(val.instrument == camera).sum()}


def test_the_cost_is_told(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for row in metrics["cost"].values(): assert row["fit, CPU s"] > 0 and row["computed in"] == "this run" and row["peak memory, MB"] != 0
    assert metrics["time"]["of it by an earlier attempt, CPU s"] == 0


def test_groups_never_meet(run):
    images = pd.read_parquet(run / "images.parquet")
    assert images.groupby("group").split.nunique().max() == 1 and images.groupby("sequence").split.nunique().max() == 1
    assert images.cluster.between(0, 4).all() and images.votes.between(0, 1).all()


def test_the_products_are_there(run):
    sheets = {p.name for p in (run / "sheets").iterdir()}
    assert {"cluster_000.jpg", "clusters.csv", "picked.csv"} <= sheets
    assert {"confusion.csv", "confusion.jpg", "doubts.csv", "curves.png", "meanings.png", "discover.html"} <= {p.name for p in run.iterdir()}


def test_a_killed_run_goes_on_with_the_same_result(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    for name in ("metrics.json", "images.parquet"): (other / name).unlink()
    next((other / "features").glob("histograms-*.npz")).unlink()
    a, b = json.loads((run / "metrics.json").read_text()), discovered(other)[0]
    assert {n: row["computed in"] for n, row in b["cost"].items()} == {"pixels": "an earlier attempt", "histograms": "this run", "autoencoder": "an earlier attempt"}
    for metrics in (a, b): metrics.pop("cost"), metrics.pop("time")
    assert a == b


def test_without_labels_and_with_broken_files(pictures, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "empty.png").touch()
    metrics, images = discovered(tmp_path / "run", data_dir=str(folder), **FEW)
    assert metrics["unreadable"] == 2 and "no labels" in metrics["summary"] and not metrics["clusters"] and not metrics["cameras"]
    assert len(images) == 60


@pytest.mark.parametrize("n, words", [(0, "no images in"), (1, "1 images"), (25, "look the same")])
def test_nothing_to_discover(pictures, tmp_path, n, words):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(n): shutil.copy(sorted(pictures.iterdir())[0], folder / f"{i}.png")
    with pytest.raises(BadInput, match=words): discovered(tmp_path / "run", data_dir=str(folder))
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("given, words", [
    ({"methods": ["pixls"]}, "no 'pixls'; did you mean 'pixels'"), ({"methods": []}, "number of methods"), ({"view": "tSNE"}, "did you mean 't-SNE'"),
    ({"ks": []}, "ks is empty"), ({"ks": [-1]}, "give 0 or more"), ({"folds": 1}, "folds is 1"), ({"seeds": 0}, "seeds is 0"),
    ({"hidden": ["hardwear"]}, "hidden: no 'hardwear'; did you mean 'hardware'"), ({"hidden": ["no such"]}, "there are .*ground"),
])
def test_what_cannot_be_is_refused_before_anything_is_learned(tmp_path, given, words):
    with pytest.raises(BadInput, match=words): discovered(tmp_path / "run", **given)
    assert not (tmp_path / "run" / "features").exists()


def test_a_refusal_reaches_the_command_line(tmp_path):
    done = command_here("run", "discover", "-f", "discover_smoke", "-p", "methods=[pixls]", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1 and "no 'pixls'" in done.stderr


def test_the_published_form_with_classes_nobody_photographed(tmp_path):
    write_toy_msl(tmp_path / "toy", 120, rng=np.random.default_rng(5), size=32)
    metrics, images = discovered(tmp_path / "run", data_dir=str(tmp_path / "toy"), **FEW)
    assert images[images.label >= 0].groupby("label").name.nunique().max() == 1 and images.label.max() == images[images.label >= 0].name.nunique() - 1


def part_of(toy, folder, keep):
    "Those images of a toy set for whose names `keep` holds"
    (folder / "calibrated").mkdir(parents=True)
    shutil.copy(next(toy.glob("*synset*")), folder)
    for image in filter(keep, sorted((toy / "calibrated").iterdir())): shutil.copy(image, folder / "calibrated")
    for names in toy.glob("*-shuffled.txt"):
        (folder / names.name).write_text("".join(line for line in names.open() if keep(Path(line.split()[0]))))
    return str(folder)


def test_a_test_folder_changes_nothing_else(tmp_path):
    toy = write_toy_msl(tmp_path / "toy", 160, rng=np.random.default_rng(5), size=32)
    last = toy.file[toy.split == "test"].max().split("/")[1][:4]
    known = part_of(tmp_path / "toy", tmp_path / "known", lambda p: p.name[:4] != last)
    kept = [part_of(tmp_path / "toy", tmp_path / f"kept{i}", lambda p: p.name[:4] == last and (i or p.name[21] in "02468")) for i in range(2)]
    a, b = (discovered(tmp_path / f"run{i}", data_dir=known, test_dir=d, **FEW)[0] for i, d in enumerate(kept))
    assert a["clusters"]["val split"] == b["clusters"]["val split"] and a["curves"] == b["curves"]
    assert a["classifiers"]["train to val"] == b["classifiers"]["train to val"]
    assert 0 < a["n"]["test"] < b["n"]["test"] and a["clusters"]["test split"] != b["clusters"]["test split"]
