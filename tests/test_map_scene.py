"The map pipeline as a user runs it: its own world, somebody's raster, somebody's model, killed, refused"
import json
import os
import shutil
import signal
import subprocess
import time

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from conftest import PLANETLAB, command_here, execute, finished

from planetlab.core import BadInput, Corrupt, ModelMismatch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished("map_scene", "map_scene_smoke", tmp_path_factory.mktemp("map") / "run")


def mapped(out, **given):
    return execute("map_scene_smoke", out, **{"turns": "", "outputs": [], **given})


def pixels(path):
    with rasterio.open(path) as src: return src.read()


def moon_of(run, to, rows=150, cols=170, **profile):
    "A corner of the mapped scene as somebody else's raster"
    with rasterio.open(run / "world" / "map" / "moon.tif") as src: profile, data = {**src.profile, "height": rows, "width": cols, **profile}, src.read()
    with rasterio.open(to, "w", **profile) as dst: dst.write(np.repeat(data[:, :rows, :cols], profile["count"], 0))
    return to


def test_a_run_folder_holds_the_map(run):
    names = {p.name for p in (run / "maps" / "moon").iterdir()}
    assert {"classes.tif", "confidence.tif", "probabilities.tif", "entropy.tif", "set_size.tif", "spread.tif", "item.json", "objects.gpkg", "to_label.csv"} <= names
    assert {"map_scene.html", "metrics.json", "moon.png", "moon_objects.png", "moon_reliability.png"} <= {p.name for p in run.iterdir()}
    with rasterio.open(run / "world" / "map" / "moon.tif") as src, rasterio.open(run / "maps" / "moon" / "classes.tif") as made:
        assert (src.crs, src.transform, src.shape) == (made.crs, made.transform, made.shape) and made.nodata == 255
    confidence = pixels(run / "maps" / "moon" / "confidence.tif")
    assert 0.25 <= np.nanmin(confidence) and np.nanmax(confidence) <= 1


def test_every_number_stands_beside_a_baseline(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["protocol"] and metrics["n"]["moon"] > 60 and "accuracy" in metrics["summary"]
    moon = metrics["scenes"]["moon"]
    assert {"as given", "calibrated", "class frequencies"} == set(moon["confidence"])
    for row in moon["confidence"].values():
        for m in ("accuracy", "ece", "nll"): assert row[f"{m}_low"] <= row[m] <= row[f"{m}_high"]
    assert all(row["covered_low"] <= row["covered"] <= row["covered_high"] and "blind" in row for row in moon["sets"].values())
    for row in moon["areas"].values(): assert row["km2_low"] <= row["km2"] <= row["km2_high"] and "km2 on the map, biased" in row
    assert sum(r["km2"] for r in moon["areas"].values()) == pytest.approx(sum(r["km2 true"] for r in moon["areas"].values()), rel=1e-3)


def test_no_ground_serves_twice(run):
    groups = [set(json.loads((run / "model" / f"{kind}_upside_down.json").read_text())["groups"]) for kind in ("calibration", "sets")]
    assert all(groups) and not groups[0] & groups[1] and not [g for g in groups[0] | groups[1] if g.startswith("moon")]
    seeds = [json.loads(p.read_text())["region"]["seed"] for p in (run / "world").glob("*/truth.json")]
    assert len(set(seeds)) == len(seeds) == 7


def test_objects_are_what_the_map_shows(run):
    found = gpd.read_file(run / "maps" / "moon" / "objects.gpkg", layer="objects")
    mapped = pixels(run / "maps" / "moon" / "classes.tif")[0]
    assert set(found.name) == {"rock"} and found.n_px.min() >= 4 and found.n_px.sum() <= (mapped == 1).sum()
    np.testing.assert_allclose(found.area_m2, found.n_px, rtol=1e-3) # 1 m/px
    assert found.crs.ellipsoid.semi_major_metre == 1_737_400


def test_somebodys_rasters_through_a_saved_model(run, tmp_path):
    (tmp_path / "mosaics").mkdir()
    for name in ("a.tif", "b.tif"): moon_of(run, tmp_path / "mosaics" / name)
    args = ["-p", f"scenes=[{tmp_path / 'mosaics'}, {run / 'world' / 'map' / 'moon.tif'}]", "-p", f"model={run / 'model'}"]
    done = command_here("run", "map_scene", "-f", "map_scene_smoke", *args, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "run" / "maps").iterdir()} == {"a", "b", "moon"} and not (tmp_path / "run" / "world").exists()
    for kind in ("classes", "confidence"):
        assert np.array_equal(*(pixels(f / "maps" / "moon" / f"{kind}.tif") for f in (run, tmp_path / "run")), equal_nan=True)
        assert np.array_equal(*(pixels(tmp_path / "run" / "maps" / n / f"{kind}.tif") for n in "ab"), equal_nan=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "confidence" not in metrics["scenes"]["a"] and metrics["fitted"]["on"] == "region temperature"


def test_a_table_of_labels_gives_areas_and_confidence(run, tmp_path):
    table = pd.read_csv(run / "maps" / "moon" / "to_label.csv")
    truth = pixels(run / "world" / "map" / "labels.tif")[0]
    table["label"] = [("ground", "rock", "shadow", "crater")[k] for k in truth[table.row, table.col]]
    table.to_csv(tmp_path / "sample.csv", index=False)
    given = {"scenes": [str(run / "world" / "map" / "moon.tif")], "model": str(run / "model"), "sample": str(tmp_path / "sample.csv"), "turns": "upside down"}
    numbers, own = mapped(tmp_path / "run", **given)["scenes"]["moon"], json.loads((run / "metrics.json").read_text())["scenes"]["moon"]
    for name, row in numbers["areas"].items(): assert row["km2"] == pytest.approx(own["areas"][name]["km2"]) and row["km2 true"] is None
    assert numbers["confidence"] == own["confidence"]
    (tmp_path / "sample.csv").write_text("lon,lat,label\n23.4,0.6,lava\n")
    with pytest.raises(BadInput, match="lava"): mapped(tmp_path / "other", **given)


def test_a_test_folder_changes_nothing_else(run, tmp_path):
    given = {"scenes": [str(run / "world" / "map" / "moon.tif")], "model": str(run / "model"), "test_dir": str(run / "world" / "val")}
    metrics = mapped(tmp_path / "run", **given)
    assert metrics["n"]["test"] > 60 and "confidence" in metrics["scenes"]["test"] and "confidence" not in metrics["scenes"]["moon"]
    assert metrics["fitted"]["on"].startswith("nothing") # the model was calibrated with averaged answers, and these are not


def test_a_plain_function_maps_too(run, tmp_path):
    raster = moon_of(run, tmp_path / "moon.tif")
    metrics = mapped(tmp_path / "run", scenes=[str(raster)], model="planetlab.predictor:roughness(12, radius=3)")
    assert set(metrics["scenes"]["moon"]["mapped, biased"]) == {"smooth", "rough"} and metrics["fitted"]["on"].startswith("nothing")


def test_workers_elsewhere_make_the_same_map(run, tmp_path):
    given = {"scenes": [str(run / "world" / "map" / "moon.tif")], "model": str(run / "model"), "turns": "upside down"}
    mapped(tmp_path / "run", **given, address="local", workers=2)
    assert np.array_equal(*(pixels(f / "maps" / "moon" / "classes.tif") for f in (run, tmp_path / "run")))


@pytest.mark.parametrize("profile, words", [
    ({"crs": "+proj=eqc +R=3396190 +units=m"}, "shows Mars, the model was made for Moon"), ({"count": 3}, "has 3 bands, the model wants 1"),
    ({"transform": rasterio.Affine(50, 0, 0, 0, -50, 0)}, "has 50 m/px"),
])
def test_a_raster_that_does_not_fit_the_model(run, tmp_path, profile, words):
    raster = moon_of(run, tmp_path / "x.tif", **profile)
    with pytest.raises(ModelMismatch, match=words): mapped(tmp_path / "run", scenes=[str(raster)], model=str(run / "model"))


@pytest.mark.parametrize("given, error, words", [
    ({"model": "nowhere"}, BadInput, "no such file"), ({"scenes": ["nowhere.tif"]}, BadInput, "no such file"), ({"network": "UNet"}, BadInput, "network"),
    ({"turns": "sideways"}, BadInput, "turns"), ({"outputs": ["spread"]}, BadInput, "mirror images"), ({"scenes": ["notes.tif"]}, Corrupt, "cannot read"),
])
def test_refused_with_a_reason(run, tmp_path, monkeypatch, given, error, words):
    (tmp_path / "notes.tif").write_text("not a raster")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words): mapped(tmp_path / "run", **{"model": str(run / "model"), **given})


def test_killed_it_goes_on_to_the_same_map(run, tmp_path):
    out = tmp_path / "run"
    for mark in ("state.pt", "maps/moon/.blocks/ledger.jsonl"):
        process = subprocess.Popen([PLANETLAB, "run", "map_scene", "-f", "map_scene_smoke", "--out", out], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not (out / mark).exists(): time.sleep(0.01)
        assert process.poll() is None, "ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert json.loads((out / "run.json").read_text())["status"] == "started"
    finished("map_scene", "map_scene_smoke", out)
    assert json.loads((out / "metrics.json").read_text()) == json.loads((run / "metrics.json").read_text())
    for made in (run / "maps" / "moon").glob("*.tif"): assert np.array_equal(pixels(made), pixels(out / "maps" / "moon" / made.name), equal_nan=made.stem not in ("classes", "set_size")), made.name


def test_a_whole_image_is_redrawn(tmp_path):
    given = {"network": "Autoencoder", "width": 16, "lr": 0.005, "windows": 60, "epochs": 8}
    metrics = mapped(tmp_path / "run", **given)
    with rasterio.open(tmp_path / "run" / "world" / "map" / "moon.tif") as src, rasterio.open(tmp_path / "run" / "maps" / "moon" / "values.tif") as made:
        x, y = src.read(1).astype(float), made.read(1)
        assert (made.crs, made.transform) == (src.crs, src.transform) and np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.5
    scores = metrics["scenes"]["moon"]["redrawn"]
    assert scores["model"]["psnr"] > scores["window mean"]["psnr"] and all(r["psnr_low"] <= r["psnr"] <= r["psnr_high"] for r in scores.values())
    again = mapped(tmp_path / "again", model=str(tmp_path / "run" / "model"), scenes=[str(tmp_path / "run" / "world" / "map" / "moon.tif")])
    assert again["scenes"]["moon"]["redrawn"] == scores
    shutil.rmtree(tmp_path / "again")
