"Names, tables and folders of Venus structures: laws, procedural folders, and the real ones where they are at hand"
import shutil
import string
import warnings
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from conftest import real
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from planetlab.bodies import VENUS
from planetlab.catalog import check_split, split_groups
from planetlab.core import BadInput, Corrupt
from planetlab.descriptors import measure_structures
from planetlab.inputs import check_unseen, cut_stack, cut_tiles, metadata, nuisances, products, read_catalog
from planetlab.structures import crop_tile, read_crop, read_crops, seed_windows, structure_tile
from planetlab.surveys import StructureName, close_pairs, format_name, missing_ids, parse_name, read_published, read_survey, write_published
from planetlab.worlds.terrain import polar_around
from planetlab.worlds.venus import CONFUSERS, make_venus, write_venus

laws = settings(deadline=None, max_examples=80)
few = settings(deadline=None, max_examples=15)


@pytest.fixture(scope="session")
def maldan():
    "Six published topography windows and the four catalogues"
    return real("venus_topo_maldan13")


# names

lengths = st.decimals(min_value=Decimal("0.001"), max_value=2000, allow_nan=False, allow_infinity=False, places=3) | st.integers(1, 2000).map(Decimal)
written = st.builds(lambda whole, part: Decimal(f"{whole}.{part}" if part else str(whole)), st.integers(1, 900), st.text(string.digits, max_size=3))
labels = st.sampled_from(["Pomona", "Ts'an Nu Mons", "Schumann-Heink", "no_name#37", "Renpet Mons", "no_name#0 b", "5km_1_2_3km"]) | \
    st.text(string.ascii_letters + string.digits + " _#'-x.", min_size=1, max_size=14)
names = st.builds(StructureName, st.sampled_from(["cor", "vlc", "vlcInt"]), st.integers(0, 2000), labels, written, st.decimals(-90, 90, places=2),
                  st.decimals(-180, 180, places=3), lengths, st.none() | st.just(Decimal(0)) | written, st.sampled_from(["sar", "topo"]),
                  st.none() | st.integers(0, 63), st.booleans())


@laws
@given(names)
@example(replace(parse_name("vlc_001_Renpet Mons_649.74km_76.074_-124.365_333.0km_topo.tif"), underscored=True))
def test_what_is_written_is_read_back(name):
    try:
        text = format_name(name)
    except BadInput: # a name whose blanks and underscores cannot be told apart
        assume("_" in name.name or name.underscored)
        return
    assert parse_name(text) == name and format_name(parse_name(text)) == text


@settings(deadline=None, max_examples=40)
@given(st.from_regex(r"(cor|vlc|vlcInt)_[0-9]{3}_[A-Za-z '#_-]{1,12}_[1-9][0-9]{0,2}(\.[0-9]{1,3})?(x[0-9](\.[0-9])?)?km"
                     r"_-?[1-8][0-9](\.[0-9]{1,3})?_-?1[0-7][0-9](\.[0-9]{1,3})?_[1-9][0-9]{0,2}(\.[0-9])?km(_topo)?(_[1-9][0-9]?)?\.tif", fullmatch=True))
def test_what_is_read_is_written_back(text):
    name = parse_name(text)
    assert format_name(name) == text and parse_name(format_name(name)) == name


@laws
@given(st.text(max_size=40) | st.from_regex(r"(cor|vlc)_[0-9]+_[a-z_]*_[0-9x.]*km_[0-9._-]*km(_topo)?\.tif"))
def test_any_other_name_is_refused_with_what_was_wanted(text):
    try:
        name = parse_name(text)
    except BadInput as e:
        assert repr(text) in str(e) or "latitude" in str(e)
        return
    assert format_name(name) == text


@pytest.mark.parametrize("text", ["cor_0_A_4x2km_7_8_9km.tif", "cor_000_A_04km_7_8_9km.tif", "cor_000_A_4km_+7_8_9km.tif", "cor_000__4km_7_8_9.0.tif",
                                  "cor_000_A_4km_7_8_9km_topo_07.tif", "cor_000_A_4km_91_8_9km.tif", "cor_000_A_4km_7_8_0km.tif", "cor_000_A_4km_7_8_9km.TIF",
                                  "x/cor_000_A_4km_7_8_9km.tif", "cor_٠٠٠_A_4km_7_8_9km.tif", "cor_000_A_4km_7_8_9km.tif\n", ""])
def test_near_misses_are_refused(text):
    with pytest.raises(BadInput): parse_name(text)


@laws
@given(written, written)
def test_a_window_is_narrow_if_its_structure_is_wider(width, diameter):
    name = StructureName("vlc", 1, "Renpet Mons", diameter, Decimal(76), Decimal(-124), width)
    assert name.is_narrow == (float(width) < float(diameter))


# tables

@few
@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180), st.floats(1, 1100), st.none() | st.floats(0.01, 1)), min_size=1, max_size=12))
def test_a_table_survives_being_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "cor.csv"
    table = pd.DataFrame([(f"cor_{i:03}", "corona", lat, lon, f"no_name#{i}", km, km * (share or np.nan)) for i, (lat, lon, km, share) in enumerate(rows)],
                         columns=["id", "type", "lat", "lon", "name", "max_km", "min_km"]).astype({"min_km": float})
    write_published(path, table)
    again = read_published(path)
    pd.testing.assert_frame_equal(again, table, check_exact=True, check_dtype=False)
    first = path.read_bytes()
    write_published(path, again)
    assert path.read_bytes() == first


@pytest.mark.parametrize("line, words", [("cor_000,north,10,A,437,1", "line 2"), ("cor_000,1,inf,A,437,1", "line 2"), ("cor_000,1,2,A,-4,1", "line 2"),
                                         ("cor_000,1,2,A,nan,1", "line 2"), ("cor_000,1,2,A,4,5", "Min_D_km"), ("moon_000,1,2,A,4,1", "cor or vlc"),
                                         ("cor_x,1,2,A,4,1", "three digits"), ("cor_000,1,2,A,inf,1", "line 2"), (",1,2,A,4,1", "line 2")])
def test_a_bad_line_is_named(tmp_path, line, words):
    (tmp_path / "cor.csv").write_text(f"uniq_ID,Latitude,Longitude,Name,Max_D_km,Min_D_km\n{line}\n")
    with pytest.raises(BadInput, match=words): read_survey(tmp_path)


def test_an_id_in_two_tables_is_refused(tmp_path):
    for name in ("a", "b"): (tmp_path / f"{name}.csv").write_text("uniq_ID,Latitude,Longitude,Name,Max_D_km\nvlc_000,1,2,A,4\n")
    with pytest.raises(BadInput, match="two tables"): read_survey(tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Corrupt): read_survey(tmp_path)


@few
@given(st.sets(st.integers(0, 60), min_size=1))
def test_gaps_are_what_is_not_there(numbers):
    ids = [f"vlcInt_{n:03}" for n in numbers]
    gaps = missing_ids(ids)
    assert not set(gaps) & set(ids) and sorted(gaps + ids) == [f"vlcInt_{n:03}" for n in range(max(numbers) + 1)]


def test_close_pairs_are_those_of_the_haversine():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": [f"cor_{i:03}" for i in range(60)], "lon": rng.uniform(175, 185, 60) % 360 - 180, "lat": rng.uniform(-90, -80, 60)})
    lon, lat = np.radians(table.lon.to_numpy()), np.radians(table.lat.to_numpy())
    h = np.sin((lat[:, None] - lat) / 2) ** 2 + np.cos(lat[:, None]) * np.cos(lat) * np.sin((lon[:, None] - lon) / 2) ** 2
    km = 2 * 6051.8 * np.arcsin(np.sqrt(h))
    assert len(close_pairs(table, 120, VENUS)) == (km[np.triu_indices(60, 1)] < 120).sum() > 5


# the real catalogues and windows

def test_real_catalogues_merge_to_687_rows(maldan):
    survey = read_survey(maldan)
    assert survey.type.value_counts().to_dict() == {"corona": 445, "large volcano": 136, "intermediate volcano": 106}
    assert survey.groupby("catalogue").min_km.agg(["size", "count"]).T.to_dict("list") == {
        "Coronae_Stofan_1": [369, 369], "Coronae_Stofan_2": [76, 1], "Intermediate_vlc_Byrn": [106, 0], "LV_MAI_BYRN": [136, 0]}
    assert missing_ids(survey.id) == ["cor_093"]
    assert [len(close_pairs(survey, km, VENUS)) for km in (50, 100)] == [4, 18]


def test_real_catalogues_are_written_back_byte_by_byte(maldan, tmp_path):
    for path in maldan.glob("*.csv"):
        write_published(tmp_path / path.name, read_published(path))
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("blank", [" ", "_"])
@pytest.mark.parametrize("suffix", [".tif", "_topo.tif", "_topo_63.tif"])
def test_names_of_all_687_rows_survive(maldan, blank, suffix):
    for path in sorted(maldan.glob("*.csv")):
        for row in pd.read_csv(path, dtype=str).itertuples():
            size = f"{row.Max_D_km}x{row.Min_D_km}" if "Min_D_km" in row._fields else row.Max_D_km
            text = f"{row.uniq_ID}_{row.Name.replace(' ', blank)}_{size}km_{row.Latitude}_{row.Longitude}_466.0km{suffix}"
            name = parse_name(text)
            assert format_name(name) == text
            assert (name.id, name.name, str(name.lat), str(name.lon), str(name.max_km)) == (row.uniq_ID, row.Name, row.Latitude, row.Longitude, row.Max_D_km)
            assert name.underscored == (blank == "_" and " " in row.Name)
            assert name.is_narrow == (float(row.Max_D_km) > 466)


def test_real_windows_have_their_frame_detected(maldan):
    narrow = []
    for path in sorted(maldan.glob("*.tif")):
        name, crop = parse_name(path.name), read_crop(path)
        assert format_name(name) == path.name and crop.valid.shape == (3839, 4096)
        good = np.zeros((3839, 4096), bool)
        good[5:-3, 5:-4] = True
        assert np.array_equal(crop.valid, good)
        assert np.isclose(crop.grid.transform.a * 4096, 1e3 * float(name.width_km))
        narrow += [name.id] * name.is_narrow
    assert narrow == ["vlc_001"]


def test_real_tiles_are_those_of_the_published_study(maldan):
    path = sorted(maldan.glob("vlcInt_000*.tif"))[0]
    with warnings.catch_warnings(action="ignore"), rasterio.open(path) as src: image = src.read(1)
    table = read_crops(maldan)
    rows = table[table.structure == "vlcInt_000"]
    assert rows.tile.tolist() == list(range(64))
    some = (0, 7, 8, 27, 56, 63)
    tiles = dict(zip(some, cut_tiles(rows.iloc[list(some)].assign(folder=str(maldan)), "topo", 512)))
    for k in some:
        y, x = 480 * (k // 8), 512 * (k % 8)
        wanted = np.zeros((512, 512), "uint8")
        wanted[:min(512, 3839 - y)] = image[y:y + 512, x:x + 512]
        assert np.array_equal(tiles[k][0][0], wanted) and (wanted > 0).sum() == tiles[k][1].sum()


def test_real_folder_is_a_catalog(maldan):
    table = read_catalog(maldan, rng=np.random.default_rng(0))
    assert products(maldan) == ["topo"] and len(table) == 6 * 64 and table.id.is_unique
    assert table.groupby("structure").type.first().value_counts().to_dict() == {"corona": 2, "large volcano": 2, "intermediate volcano": 2}
    assert set(table.catalogue) == {"Coronae_Stofan_1", "LV_MAI_BYRN", "Intermediate_vlc_Byrn"} and not table.calibrated.any()
    assert table[table.type != "corona"].min_km.isna().all() and table[table.type == "corona"].min_km.notna().all()
    # the windows of Pomona, Anahit and Laka Mons share ground, so no split may part them
    assert table[table.shares_ground].structure.unique().tolist() == ["cor_000", "cor_001", "vlc_000"] and table.group.nunique() == 4
    table["split"] = split_groups(table.group, {"train": 0.6, "val": 0.4}, rng=np.random.default_rng(0))
    check_split(table)
    rows = table.groupby("structure").head(2)
    tiles = {"topo": cut_tiles(rows, "topo", 32, 3)}
    known = nuisances(rows, tiles, {"topo": 3})
    assert known.elevation_m.isna().all() and known[["res_m", "lat", "incidence_deg", "invalid"]].notna().all().all()
    assert measure_structures(rows, tiles, {"topo": 3}).isna().all().all() and list(metadata(rows)) == ["lon", "lat", "max_km", "row", "col"]


# published windows, made here

@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    "Two published windows of 3839 x 4096 px, radar and topography, frames and a gap included"
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    for lon in (10, 179.9):
        for product in ("sar", "topo"):
            name = StructureName("cor", int(lon), f"Test Corona {int(lon)}", Decimal(100), Decimal("-5.5"), Decimal(str(lon)), Decimal("204.8"), Decimal(0), product, underscored=True)
            image = np.kron(rng.integers(1, 200, (120, 128)), np.ones((32, 32), int))[:3839].astype("uint8")
            image[:5], image[-3:], image[:, :5], image[:, -4:] = 0, 0, 0, 0
            image[1000:1100, 1000:1100] = 0
            with (warnings.catch_warnings(action="ignore"),
                  rasterio.open(folder / format_name(name), "w", driver="GTiff", height=3839, width=4096, count=1, dtype="uint8") as dst): dst.write(image, 1)
    return folder


def test_invalid_pixels_of_a_window_change_nothing(windows):
    rows = read_crops(windows).iloc[[0, 18, 63]]
    sar, topo = (read_crop(windows / format_name(replace(parse_name(rows.crop.iloc[0]), product=p))) for p in ("sar", "topo"))
    assert not topo.valid[:5].any() and topo.valid[1050, 1050]       # a height of 0 inside is a height
    assert not sar.valid[1050, 1050] and not sar.valid[:, -4:].any() # radar of 0 is none
    poisoned = sar._replace(pixels=np.where(sar.valid, sar.pixels, 255).astype("uint8"))
    for k in rows.tile:
        one, other = (crop_tile(crop, k, 32, 3) for crop in (sar, poisoned))
        assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.valid, other.valid)
        assert (one.pixels[:, ~one.valid] == 0).all() and one.valid.any()


@pytest.mark.parametrize("size, margin", [(10, 0), (32, 3), (64, 6), (100, 7), (512, 0)])
def test_tiles_of_a_window_are_means_over_its_valid_part(windows, size, margin):
    table = read_crops(windows)
    row = table[table.structure == "cor_010"].iloc[18] # holds the gap of the radar image
    tile = structure_tile(row, windows, "sar", size, margin)
    path = next(p for p in windows.glob("cor_010*.tif") if "topo" not in p.name)
    crop, step = read_crop(path), 512 / size
    assert tile.valid.shape == (size + 2 * margin,) * 2
    rng = np.random.default_rng(0)
    fine = 25 if step != int(step) else int(step) # look at many points of each pixel's ground
    for i, j in rng.integers(0, size + 2 * margin, (20, 2)):
        y = (960 + (i - margin + (np.arange(fine) + 0.5) / fine) * step).astype(int)
        x = (1024 + (j - margin + (np.arange(fine) + 0.5) / fine) * step).astype(int)
        some = np.ix_(y, x)
        if not tile.valid[i, j]: assert crop.valid[some].mean() < 0.6
        else: assert abs(tile.pixels[0, i, j] - crop.pixels[0][some][crop.valid[some]].mean()) < (8 if fine == 25 else 1e-2)


def test_windows_lie_where_their_names_say(windows):
    table = read_catalog(windows, rng=np.random.default_rng(0))
    assert table.group.nunique() == 2 and table.min_km.isna().all() and (table.catalogue == "").all() and not table.shares_ground.any()
    far = table[table.structure == "cor_179"]
    assert far.lat.between(-6.6, -4.4).all() and (far.lon.abs() > 178.8).all() and (far.lon > 0).any() and (far.lon < 0).any()
    assert all(max(f.exterior.xy[0]) - min(f.exterior.xy[0]) < 0.3 for f in far.footprint) # no outline runs round the planet
    tile = structure_tile(far.iloc[0], windows, "topo", 32, 3)
    assert np.isclose(tile.grid.transform.a, 512 * 50 / 32) and products(windows) == ["sar", "topo"]
    assert cut_stack(far.head(2), ["sar", "topo"], 16)[0][0].shape == (2, 16, 16)


def test_windows_seen_before_are_recognised(windows, tmp_path):
    table = read_catalog(windows, rng=np.random.default_rng(0))
    other = tmp_path / "other"
    other.mkdir()
    for p in windows.glob("cor_010*.tif"): shutil.copy(p, other / p.name.replace("cor_010", "cor_500").replace("_10_", "_60_"))
    with pytest.raises(BadInput, match="among those learned from"): check_unseen(table, read_catalog(other, rng=np.random.default_rng(0)))
    near, far = (table[table.structure == s] for s in ("cor_010", "cor_179"))
    check_unseen(near, far)
    with pytest.raises(BadInput, match="share ground"): check_unseen(near, far.assign(footprint=near.footprint.tolist()))


@laws
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_seed_windows_cover_a_window(h, w):
    tiles = seed_windows(h, w)
    down, across = {t.row_off for t in tiles}, {t.col_off for t in tiles}
    assert len(tiles) == len(down) * len(across) and max(down) + 512 >= h and max(across) + 512 >= w
    assert [(t.row_off, t.col_off) for t in tiles] == sorted((r, c) for r in down for c in across)


def test_seed_windows_of_the_published_size():
    tiles = seed_windows(3839, 4096)
    assert len(tiles) == 64 and sorted({t.row_off for t in tiles}) == list(range(0, 3361, 480)) and sorted({t.col_off for t in tiles}) == list(range(0, 3585, 512))
    assert 3839 - tiles[-1].row_off == 479


# mosaics

def field(lon, lat): return 100 + 60 * np.cos(np.radians(lon)) * np.cos(np.radians(lat)) + 30 * np.sin(np.radians(lat))


@pytest.fixture(scope="module", params=[-180, 0])
def globe(request, tmp_path_factory):
    "Three global mosaics of a smooth field, from either end of the map, and structures on its edges"
    folder, west = tmp_path_factory.mktemp("globe"), request.param
    lon, lat = np.meshgrid(west + (np.arange(1440) + 0.5) / 4, 90 - (np.arange(720) + 0.5) / 4)
    for name in ("sar", "topo", "emissivity"):
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", height=720, width=1440, count=1, dtype="float32", crs=VENUS.lonlat_crs,
                           transform=Affine(0.25, 0, west, 0, -0.25, 90)) as dst: dst.write(field(lon, lat).astype("float32"), 1)
    pd.DataFrame({"uniq_ID": ["vlc_000", "vlc_001", "vlc_002", "vlc_003"], "Latitude": [2.0, -40, 60, 5], "Longitude": [179.9, -179.95, 10.0, 0.1],
                  "Name": "no_name", "Max_D_km": [300.0, 400, 300, 350]}).to_csv(folder / "vlc.csv", index=False)
    return folder


def test_a_global_stack_is_cut_across_the_edges_of_its_map(globe):
    table = read_catalog(globe, rng=np.random.default_rng(0))
    assert products(globe) == ["sar", "emissivity", "topo"]
    for (pixels, valid), row in zip(cut_stack(table, products(globe), 16), table.itertuples()):
        assert pixels.shape == (3, 16, 16) and valid.mean() > 0.9
        assert np.mean(np.abs(pixels[0][valid] - field(row.lon, row.lat)) < 6) > 0.9


def test_a_global_mosaic_has_no_seam(globe):
    table = read_catalog(globe, rng=np.random.default_rng(0))
    for pixels, valid in cut_tiles(table, "sar", 16): assert valid.all() and np.ptp(pixels[0][valid]) < 10


@pytest.fixture(scope="module")
def world():
    "A procedural Venus with every instrument on, seen from the east, crowded with confusers"
    return make_venus(30, emissivity=True, look_deg=270, confusers={**CONFUSERS, "pancake": 0.4}, rng=np.random.default_rng(1))


def test_a_world_with_every_instrument_is_a_catalog(world, tmp_path):
    folder = write_venus(world, tmp_path / "w", rng=np.random.default_rng(0))
    table = read_catalog(folder, rng=np.random.default_rng(0))
    assert products(folder) == ["sar", "emissivity", "topo"] and set(table.look_deg) == {270.0} and table.calibrated.all()
    tiles = {n: cut_tiles(table, n, 32) for n in products(folder)}
    known = nuisances(table, tiles)
    assert known.notna().all().all() and (known.res_m == table.width_m / 32).all()
    assert all(0.3 < p[v[None]].mean() < 1 for p, v in tiles["emissivity"])
    with pytest.raises(BadInput, match="this very table"): nuisances(table, {"sar": tiles["sar"][:2]})


def test_the_altimeter_loses_the_slopes_of_small_edifices(world):
    kept = {kind: [] for kind in ("pancake", "vlc")}
    for r in world.truth[world.truth.kind.isin(kept)].itertuples():
        def steepest(heights, grid):
            near = polar_around(grid, VENUS, r.lon, r.lat, 600 * r.diameter_km)
            return np.percentile(np.hypot(*np.gradient(heights[near.rows, near.cols].astype(float), grid.transform.a)), 95)
        kept[r.kind].append(steepest(world.topo_m, world.topo_grid) / steepest(world.ground_m, world.grid))
    assert len(kept["pancake"]) == 12 and np.median(kept["pancake"]) < 0.3 and np.median(kept["vlc"]) > 0.5


def test_a_mosaic_without_tables_or_of_nothing_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds neither"): products(tmp_path)
    (tmp_path / "photo.tif").write_bytes(b"")
    with pytest.raises(BadInput, match="names look like"): products(tmp_path)
    (tmp_path / "photo.tif").rename(tmp_path / "cor_000_A_4x0km_7_8_9km_3.tif")
    with pytest.raises(BadInput, match="whole windows"): read_crops(tmp_path)
    (tmp_path / "cor_000_A_4x0km_7_8_9km_3.tif").rename(tmp_path / "cor_000_A_4x0km_7_8_9km.tif")
    with pytest.raises(Corrupt): read_catalog(tmp_path, rng=np.random.default_rng(0))
