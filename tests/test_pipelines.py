"The Venus pipeline as a user runs it: whole, refused, resumed, killed"
import json
import os

import geopandas as gpd
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import command, command_here, real
from safetensors.numpy import load_file

from planetlab.core import PlanetlabError
from planetlab.share import load_model


def test_a_run_folder_holds_everything(smoke):
    names = {p.name for p in smoke.iterdir()}
    assert {"venus.ipynb", "venus.html", "run.json", "metrics.json", "structures.parquet", "footprints.gpkg", "judged.png",
            "latents_topo.parquet", "model_topo"} <= names
    assert not [n for n in names if "partial" in n or "failed" in n]
    record = json.loads((smoke / "run.json").read_text())
    assert record["status"] == "finished" and record["environment"]["torch"] and record["identity"]["parameters"]["seed"] == 0
    metrics = json.loads((smoke / "metrics.json").read_text())
    table = metrics["val"]["Gaussian mixture"]
    assert {"latents topo", "pixels + PCA topo", "metadata only", "latents topo, permuted"} <= set(table)
    assert all({"n", "ari", "ari_low", "ari_high"} <= set(row) for row in table.values()) and metrics["protocol"] and not metrics["test"]
    assert abs(table["latents topo, permuted"]["ari"]) < 0.1
    assert "seconds" not in json.dumps(metrics)
    assert not [c for c in nbformat.read(smoke / "venus.ipynb", 4).cells if "error" in str([o.output_type for o in c.get("outputs", [])])]


def test_footprints_lie_on_venus(smoke):
    outlines = gpd.read_file(smoke / "footprints.gpkg")
    assert outlines.crs.to_wkt().count("Venus") and len(outlines) == len(pd.read_parquet(smoke / "structures.parquet"))
    assert outlines.crs.ellipsoid.semi_major_metre == 6051800


def test_splits_share_no_ground(smoke):
    table = pd.read_parquet(smoke / "structures.parquet")
    assert table.groupby("group").split.nunique().max() == 1 and set(table.split) == {"train", "val"}


def test_the_page_stands_alone(smoke):
    page = (smoke / "venus.html").read_text()
    assert "<img" in page and 'src="http' not in page and "<script src" not in page


def test_a_finished_run_says_so(smoke):
    before = {p: p.stat().st_mtime_ns for p in smoke.rglob("*") if p.is_file() and p.name != ".lock"}
    again = command("run", "venus", "-f", "venus_smoke", "--out", smoke, cwd=smoke.parent)
    assert again.returncode == 0 and "Finished before" in again.stdout and "ARI" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in smoke.rglob("*") if p.is_file() and p.name != ".lock"}


def test_runs_are_listed_and_compared(smoke):
    listed = command_here("runs", smoke.parent, cwd=smoke.parent)
    assert "finished" in listed.stdout and smoke.name in listed.stdout
    assert "No difference" in command_here("runs", smoke, smoke, cwd=smoke.parent).stdout


@pytest.mark.parametrize("args, words", [
    (["-p", "latnt=3"], ["no parameter 'latnt'", "did you mean 'latent'"]),
    (["-p", "latent=many"], ["latent is 'many'", "type int"]),
    (["-p", "latent"], ["sets nothing", "name=value"]),
    (["-f", "venus_jartol"], ["no preset 'venus_jartol'", "did you mean 'venus_jartool'"]),
    (["-p", "out_dir=here"], ["--out"]),
    (["-p", "data_dir=nowhere"], ["no such file or folder", "nowhere"]),
    (["-p", "test_dir=nowhere"], ["no such file or folder", "nowhere"]),
])
def test_refused_before_anything_starts(tmp_path, args, words):
    done = command_here("run", "venus", *args, cwd=tmp_path)
    assert done.returncode == 2 and all(w in done.stderr for w in words) and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_pipeline_is_refused(planetlab):
    done = planetlab("run", "venis")
    assert done.returncode == 2 and "did you mean 'venus'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("prepare, words", [
    (lambda out: out.write_text("mine"), ["mine", "file"]),
    (lambda out: (out.mkdir(), (out / "thesis.txt").write_text("mine")), ["thesis.txt", "no run folder"]),
    (lambda out: (out.parent / "plain").write_text(""), ["cannot write"]),
])
def test_an_existing_output_is_left_alone(tmp_path, prepare, words):
    out = tmp_path / "mine"
    prepare(out)
    if not out.exists(): out = tmp_path / "plain" / "run"
    before = {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    done = command_here("run", "venus", "-f", "venus_smoke", "--out", out, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and any(w in done.stderr for w in words)
    assert {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_run_folder_refuses_other_parameters(smoke):
    done = command_here("run", "venus", "-f", "venus_smoke", "-p", "latent=5", "--out", smoke, cwd=smoke.parent)
    assert done.returncode == 1 and "other parameters" in done.stderr


def test_one_folder_one_owner(planetlab, tmp_path):
    from filelock import FileLock
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        done = planetlab("run", "venus", "-f", "venus_smoke", "--out", tmp_path / "run")
    assert done.returncode == 1 and "another process" in done.stderr


def test_real_images_with_a_test_folder(jartool, tmp_path):
    labels = pd.read_csv(jartool / "labels.csv")
    images = sorted(p.name for p in (jartool / "images").glob("*.png"))
    for part, chosen in {"known": images[::3], "kept": images[1::3]}.items():
        (tmp_path / part / "images").mkdir(parents=True)
        for name in chosen: os.symlink(jartool / "images" / name, tmp_path / part / "images" / name)
        labels[labels.image.isin(chosen)].to_csv(tmp_path / part / "labels.csv", index=False)
    args = ["run", "venus", "-f", "venus_jartool", "-p", "epochs_sar=2", "-p", "width=8", "--out", tmp_path / "run"]
    done = command_here(*args, "-p", f"data_dir={tmp_path / 'known'}", "-p", f"test_dir={tmp_path / 'kept'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["n"]["test"] > 50 and "metadata only" in metrics["test"]["k-means"]
    again = command_here(*args, "-p", f"data_dir={tmp_path / 'known'}", "-p", f"test_dir={tmp_path / 'known'}", "--fresh", cwd=tmp_path)
    assert again.returncode == 1 and "test images are among those learned from" in again.stderr


def test_the_published_encoder_on_the_published_windows(tmp_path):
    folder = real("venus_topo_maldan13")
    done = command_here("run", "venus", "-f", "venus_topo_maldan13", "-p", "epochs_topo=1", "-p", f"data_dir={folder}", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model, _ = load_model(tmp_path / "run" / "model_topo")
    assert sum(p.numel() for p in model.parameters()) == 61_777


def test_a_stack_and_the_shift_of_its_bands(smoke):
    metrics = json.loads((smoke / "metrics.json").read_text())
    assert {"latents stack", "pixels + PCA stack"} <= set(metrics["val"]["k-means"])
    assert metrics["shift of the heights, km"]["own place"]["east_km n"] >= 3
    assert load_model(smoke / "model_stack")[0].design.channels == 2


def test_a_test_folder_changes_nothing_else(smoke, tmp_path):
    from planetlab.worlds.venus import make_venus, write_venus
    other = write_venus(make_venus(20, rng=np.random.default_rng(9)), tmp_path / "other", rng=np.random.default_rng(9))
    done = command_here("run", "venus", "-f", "venus_smoke", "-p", f"test_dir={other}", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((f / "metrics.json").read_text()) for f in (smoke, tmp_path / "run"))
    assert a["val"] == b["val"] and b["n"]["test"] > 0 and b["test"]["Gaussian mixture"]["latents topo"]["n"] == b["n"]["test"]
    x, y = (load_file(f / "model_topo" / "model.safetensors") for f in (smoke, tmp_path / "run"))
    assert all(np.array_equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("name, old, new", [
    ("model.safetensors", None, None), ("config.json", "planetlab.models.autoencoder.VAE", "os.system"),
    ("config.json", '"latent": 6', '"latent": 7'), ("config.json", "{", "["),
])
def test_a_tampered_model_is_refused(smoke, tmp_path, name, old, new):
    for p in (smoke / "model_topo").iterdir(): (tmp_path / p.name).write_bytes(p.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    if old is None: data[len(data) // 2] ^= 1
    else:
        changed = data.decode().replace(old, new)
        assert changed != data.decode()
        data = changed.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PlanetlabError): load_model(tmp_path)


def test_a_saved_model_is_whole(smoke):
    model, about = load_model(smoke / "model_topo")
    assert about["body"] == "Venus" and not model.training
