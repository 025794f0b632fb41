"The Discover pipeline as a user runs it: labelled, unlabelled, hostile"
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import command
from PIL import Image

from planetlab.worlds.rover import rover_images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("discover") / "run"
    done = command("run", "discover", "-f", "discover_smoke", "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    images, table = rover_images(120, np.random.default_rng(3), 32)
    folder = tmp_path_factory.mktemp("pictures")
    for i, (image, group) in enumerate(zip(images, table.group)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"sol{group}_Олимп_{i:04}.png")
    return folder


def test_every_score_stands_beside_chance(run):
    metrics = json.loads((run / "metrics.json").read_text())
    rows = metrics["clusters"]["val split"]
    assert set(metrics["clusters"]) >= {"val split", "val split, no near-duplicates", "test split"}
    for row in rows.values():
        assert {"k", "n", "purity", "purity_low", "purity_high", "purity_random", "nmi_random", "carried"} <= row.keys()
        assert row["purity_low"] <= row["purity"] <= row["purity_high"] and row["purity_random"] < 1
    assert all(row["accuracy_null"] < 0.6 and row["accuracy_majority"] > 0 for row in metrics["classifiers"]["train to val"].values())


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
    for name in ("metrics.json", "images.parquet", "discover.html"): (other / name).unlink()
    next((other / "features").glob("histograms-*.npz")).unlink()
    record = json.loads((other / "run.json").read_text()) | {"status": "running"}
    (other / "run.json").write_text(json.dumps(record))
    done = command("run", "discover", "-f", "discover_smoke", "--out", other, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((f / "metrics.json").read_text()) for f in (run, other))
    a.pop("cost"), b.pop("cost")
    assert a == b


def test_without_labels_and_with_broken_files(pictures, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "empty.png").touch()
    done = command("run", "discover", "-f", "discover_smoke", "-p", f"data_dir={folder}", "-p", "ks=[12]", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["unreadable"] == 2 and "no labels" in metrics["summary"] and not metrics["clusters"]
    assert len(pd.read_parquet(tmp_path / "run" / "images.parquet")) == 120


@pytest.mark.parametrize("n, words", [(0, "no images in"), (1, "1 images"), (25, "look the same")])
def test_nothing_to_discover(pictures, tmp_path, n, words):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(n): shutil.copy(sorted(pictures.iterdir())[0], folder / f"{i}.png")
    done = command("run", "discover", "-f", "discover_smoke", "-p", f"data_dir={folder}", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1 and words in done.stderr and not (tmp_path / "run" / "metrics.json").exists()


def test_a_representation_that_is_not_there(tmp_path):
    done = command("run", "discover", "-f", "discover_smoke", "-p", "methods=[pixls]", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1 and "no representation 'pixls'" in done.stderr


def test_the_published_form_with_classes_nobody_photographed(tmp_path):
    from planetlab.datasets import write_toy_msl
    write_toy_msl(tmp_path / "toy", 160, rng=np.random.default_rng(5), size=32)
    done = command("run", "discover", "-f", "discover_smoke", "-p", "methods=[pixels]", "-p", "joint=0", "-p", f"data_dir={tmp_path / 'toy'}", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    assert images[images.label >= 0].groupby("label").name.nunique().max() == 1 and images.label.max() == images[images.label >= 0].name.nunique() - 1
