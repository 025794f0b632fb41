"Laws of learning: chips that move, trainings that resume, models that are handed on"
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planetlab.chips import PRODUCTS, Chips, LazyChips, Symmetry, Views, draw_moves, make_chips, move, random_view, same, shared
from planetlab.core import BadInput, CannotWrite, Corrupt, EmptyTile, ModelMismatch
from planetlab.measure import bicubic, constant, iter_scores, mean_scores, pixel_errors, ssim
from planetlab.models.autoencoder import VAE, vae_loss
from planetlab.models.objective import BETAS, ms_ssim
from planetlab.share import load_model, save_model, share_model
from planetlab.stretch import Stretch
from planetlab.train import Constant, Cosine, Decay, OneCycle, Recipe, TrainState, fit

LAW = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 10**6)
symmetries = st.builds(Symmetry, st.booleans(), st.booleans(), st.floats(0, 0.3), st.floats(0, 0.4), st.booleans(), st.just(False), st.booleans())


def gen(seed): return torch.Generator().manual_seed(seed)


def holed(seed, n=4, side=20, size=16):
    "Chips with holes, the same for the same seed"
    g = gen(seed)
    return Chips(torch.rand(n, 2, side, side, generator=g), torch.rand(n, 1, side, side, generator=g) > 0.15, size)


def loaders(n=40, side=16):
    chips = Chips(torch.rand(n, 1, side + 4, side + 4, generator=gen(0)), torch.rand(n, 1, side + 4, side + 4, generator=gen(1)) > 0.05, side)
    return [Views(chips, Symmetry(True), 16, steady, generator=gen(int(steady))) for steady in (False, True)]


def start():
    torch.manual_seed(0)
    return VAE(size=16, latent=3, width=8)


def train(recipe, state=None, stop=None):
    model, rows = start(), []
    for row in fit(model, vae_loss, *loaders(), recipe, state):
        rows.append(row)
        if len(rows) == stop: break
    return model, rows


def equal(a, b): return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# chips

@LAW
@given(seeds, symmetries)
def test_moves_never_mix_invalid_pixels_into_valid_ones(seed, symmetry):
    chips = holed(seed)
    views = [random_view(chips._replace(x=torch.where(chips.valid, chips.x, torch.tensor(fill))), symmetry, generator=gen(seed))
             for fill in (0.0, 1e6, torch.nan)]
    for view in views[1:]: assert torch.equal(view.x, views[0].x) and torch.equal(view.valid, views[0].valid)
    flat = random_view(chips._replace(x=torch.full_like(chips.x, 0.8)), symmetry, generator=gen(seed))
    shown = flat.x[flat.valid.expand_as(flat.x)]
    assert torch.allclose(shown, torch.full_like(shown, 0.8), atol=1e-5) and (flat.x[~flat.valid.expand_as(flat.x)] == 0.5).all()


@LAW
@given(seeds, symmetries)
def test_a_pair_moves_together_and_a_seed_moves_once(seed, symmetry):
    chips = holed(seed)
    pair = next(iter(Views((chips, chips), (symmetry, PRODUCTS["topo"].symmetry), 4, generator=gen(seed))))
    assert torch.equal(pair[0], pair[2]) and torch.equal(pair[1], pair[3])
    again = next(iter(Views((chips, chips), (symmetry, PRODUCTS["topo"].symmetry), 4, generator=gen(seed))))
    assert torch.equal(pair[0], again[0])


@LAW
@given(seeds, symmetries, symmetries)
def test_what_two_share_each_allows(seed, a, b):
    x = torch.rand(1, 1, 6, 6, generator=gen(seed))
    both = {v.numpy().tobytes() for v in same(x, shared(a, b))}
    for s in (a, b): assert both <= {v.numpy().tobytes() for v in same(x, s)}


@LAW
@given(seeds)
def test_products_keep_what_they_must(seed):
    moves = {name: draw_moves(64, p.symmetry, generator=gen(seed)) for name, p in PRODUCTS.items()}
    assert (moves["sar"].angle == 0).all() and (moves["sar"].flip[:, 0] == 1).all() and (moves["sar"].flip[:, 1] == -1).any()
    assert (moves["rover"].angle == 0).all() and (moves["rover"].flip[:, 1] == 1).all() and (moves["rover"].flip[:, 0] == -1).any()
    quarter = moves["embedding"].angle / (np.pi / 2)
    assert torch.allclose(quarter, quarter.round(), atol=1e-6) and (moves["embedding"].scale == 1).all()
    still = replace(PRODUCTS["image"].symmetry, shift=0, zoom=0)
    chips = holed(seed)
    centred = Chips(chips.x[..., 2:18, 2:18], chips.valid[..., 2:18, 2:18], 16)
    view = random_view(chips, still, generator=gen(seed)) # no azimuth: nothing turns
    assert torch.allclose(view.x[view.valid.expand_as(view.x)], centred.x[view.valid.expand_as(view.x)], atol=1e-4)


@LAW
@given(seeds, st.floats(0, 360))
def test_light_turns_with_the_ground(seed, azimuth):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    a = np.deg2rad(azimuth)
    ramp = (0.5 + 0.2 * (np.sin(a) * x - np.cos(a) * y)).float().expand(8, 1, 32, 32)
    chips = Chips(ramp, torch.ones(8, 1, 32, 32, dtype=torch.bool), 20, torch.full((8,), float(azimuth)))
    view = random_view(chips, PRODUCTS["image"].symmetry, generator=gen(seed))
    right, down = (view.x[..., 4:-4, 5:-4] - view.x[..., 4:-4, 4:-5]).mean((1, 2, 3)), (view.x[..., 5:-4, 4:-4] - view.x[..., 4:-5, 4:-4]).mean((1, 2, 3))
    seen = torch.atan2(right, -down).rad2deg()
    assert (((seen - view.azimuth + 180) % 360 - 180).abs() < 2).all()


def test_lazy_chips_are_the_stacked_ones_and_keep_nothing():
    rng, read = np.random.default_rng(0), []
    tiles = [(rng.normal(size=(1, 12, 12)), rng.random((12, 12)) > 0.1) for _ in range(30)]

    def reader(i):
        read.append(i)
        return tiles[i]
    lazy, whole = LazyChips(range(30), reader, Stretch((-2,), (2,)), 8), make_chips(tiles, Stretch((-2,), (2,)), 8)
    for a, b in zip(*(Views(c, Symmetry(True), 7, generator=gen(3)) for c in (lazy, whole))): assert all(map(torch.equal, a, b))
    assert sorted(read) == list(range(30)) # each once, none ahead
    next(iter(Views(lazy, Symmetry(), 7, generator=gen(3))))
    assert len(read) == 37
    tiles[4] = (tiles[4][0], np.zeros((12, 12), bool))
    with pytest.raises(EmptyTile): lazy[4]


# training

RECIPES = [Recipe(4), Recipe(4, ema=0.9, schedule=Cosine(), precision="no"), Recipe(4, micro_batch=5, schedule=Decay(0.8), ema=0.5)]


@pytest.mark.parametrize("recipe", RECIPES, ids=["plain", "mean", "passes"])
def test_stopped_at_random_epochs_it_ends_the_same(recipe, tmp_path):
    whole, rows = train(recipe)
    rng = random.Random(str(recipe))
    for stop in sorted(rng.choices(range(1, 4), k=2)):
        stopped, seen = train(recipe, tmp_path / "s.pt", stop)
        assert seen == rows[:stop]
        torch.rand(rng.randrange(9))
    resumed, again = train(recipe, tmp_path / "s.pt")
    assert again == rows and equal(whole, resumed)
    assert equal(whole, train(recipe, tmp_path / "s.pt")[0]) # nothing left to do


def test_saved_now_and_then_it_ends_the_same(tmp_path):
    whole, rows = train(Recipe(4))
    train(Recipe(4), TrainState(tmp_path / "s.pt", every=2), stop=3)
    assert len(TrainState(tmp_path / "s.pt").rows()) == 2
    resumed, again = train(Recipe(4), TrainState(tmp_path / "s.pt", every=2))
    assert again == rows and equal(whole, resumed) and TrainState(tmp_path / "none.pt").rows() == []


def test_a_row_leaves_the_weights_it_judged():
    for recipe in (Recipe(3), Recipe(3, ema=0.9)):
        model, val = start(), loaders()[1]
        for row in fit(model, vae_loss, *loaders(), recipe):
            assert not model.training
            with torch.no_grad(): judged = sum(vae_loss(model, x, valid)["recon"].item() * len(x) for x, valid in val) / 40
            assert judged == pytest.approx(row["val_recon"], rel=0.1)


def linear(model, x, y): return {"loss": (model(x) - y).square().mean()}


class Line(list):
    "Batches in a fixed order"
    generator = None


def line(n=24, batch=8):
    x = torch.randn(n, 3, generator=gen(0))
    return Line(zip(x.split(batch), (x @ torch.tensor([[1.0], [2], [3]])).split(batch)))


def test_the_running_mean_is_one():
    "Against a mean written out by hand"
    weights = []

    def watched(model, x, y):
        if model.training: weights.append(model.weight.detach().clone())
        return linear(model, x, y)

    def fitted(recipe):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        list(fit(model, watched, line(), line(), recipe))
        return model.weight.detach()
    plain = Recipe(1, lr=0.1, schedule=Constant(), precision="no")
    last = fitted(plain)
    weights = [*weights[1:], last] # after each of three steps
    mean = weights[0]
    for n, w in enumerate(weights[1:], 1): mean = torch.lerp(mean, w, 1 - min(0.9, (1 + n) / (10 + n)))
    assert torch.allclose(fitted(replace(plain, ema=0.9)), mean, atol=1e-6)


@pytest.mark.parametrize("schedule,last", [(OneCycle(), 0), (Cosine(), 0), (Constant(), 1), (Decay(0.5), 0.125)])
def test_schedules(schedule, last):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    plan = schedule(opt, 3, 10)
    for _ in range(30):
        opt.step()
        plan.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(last, abs=0.01) and schedule == type(schedule)(**vars(schedule))


def test_passes_add_up_to_the_batch():
    weights = []
    for micro in (0, 1, 3, 100):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        list(fit(model, linear, line(24, 7), line(), Recipe(3, lr=0.1, precision="no", micro_batch=micro)))
        weights.append(model.weight.detach())
    for w in weights[1:]: assert torch.allclose(w, weights[0], atol=1e-5)


def test_precision_changes_the_time_and_not_the_result():
    losses = {p: train(Recipe(8, precision=p))[1][-1]["val_recon"] for p in ("no", "bf16", "auto")}
    others = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        others.append(list(fit(VAE(size=16, latent=3, width=8), vae_loss, *loaders(), Recipe(8, precision="no")))[-1]["val_recon"])
    noise = max(abs(o - losses["no"]) for o in others) + 0.02 * losses["no"]
    assert abs(losses["auto"] - losses["no"]) < noise and abs(losses["bf16"] - losses["no"]) < noise


def test_a_state_of_another_training_is_refused(tmp_path):
    state = tmp_path / "s.pt"
    train(Recipe(4), state, stop=1)
    def other(loss=vae_loss, recipe=Recipe(4), model=None): return list(fit(model or start(), loss, *loaders(), recipe, state))
    for kwargs in ({"recipe": Recipe(4, lr=1e-3)}, {"recipe": Recipe(4, schedule=Decay())}, {"loss": lambda m, *b: vae_loss(m, *b)},
                   {"model": VAE(size=16, latent=3, width=8)}):
        with pytest.raises(ModelMismatch): other(**kwargs)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(Corrupt): train(Recipe(4), state)
    torch.save({"evil": os.system}, state)
    with pytest.raises(Corrupt): train(Recipe(4), state)


def test_a_loss_with_a_memory_is_kept(tmp_path):
    class Warm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, model, x, valid):
            if model.training: self.calls += 1
            out = vae_loss(model, x, valid)
            return {**out, "loss": out["loss"] * self.calls.clamp(max=8) / 8, "calls": self.calls.clone()}

        def __repr__(self): return "Warm()"
    def rows(state=None, stop=None):
        model, seen = start(), []
        for row in fit(model, Warm(), *loaders(), Recipe(4), state):
            seen.append(row)
            if len(seen) == stop: break
        return seen
    rows(tmp_path / "s.pt", 2)
    assert rows(tmp_path / "s.pt") == rows()


LIMIT = """
import resource, sys, torch
from planetlab.core import CannotWrite
from planetlab.models.autoencoder import VAE, vae_loss
from planetlab.share import save_model
from planetlab.train import TrainState
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = VAE(size=16, latent=3, width=8)
for job in (lambda: TrainState(sys.argv[1] + "/s.pt").save({"model": model}, "", []), lambda: save_model(sys.argv[1], model, {})):
    try: job()
    except CannotWrite as e: print("refused")
"""


def run(code, *args, env=None):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, cwd=Path(__file__).parents[1])


def test_a_full_disk_leaves_nothing(tmp_path):
    done = run(LIMIT, tmp_path)
    assert done.stdout.split() == ["refused", "refused"], done.stderr
    assert not list(tmp_path.iterdir())


LAUNCH = """
import json, os, sys
sys.path.insert(0, "tests")
from test_learn import linear, line, gen, train, nn, torch, Recipe, fit
class Batches(list): generator = gen(0)
torch.manual_seed(0)
model = nn.Linear(3, 1)
rows = list(fit(model, linear, Batches(line(24, 7)), line(), Recipe(3, lr=0.1, precision="no", micro_batch=2, ema=0.5), sys.argv[1] + "/line.pt"))
_, stopped = train(Recipe(2), sys.argv[1] + "/vae.pt", 1)
_, resumed = train(Recipe(2), sys.argv[1] + "/vae.pt")
_, whole = train(Recipe(2))
with open(f"{sys.argv[1]}/{os.environ.get('RANK', 'one')}.json", "w") as f: json.dump([rows, model.weight.tolist(), resumed, whole], f)
if torch.distributed.is_initialized(): torch.distributed.barrier(), torch.distributed.destroy_process_group() # no thread outlives the interpreter
"""


def test_two_processes_train_as_one_does(tmp_path):
    (tmp_path / "train.py").write_text(LAUNCH)
    (tmp_path / "two").mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", tmp_path / "train.py", tmp_path / "two"]
    both = subprocess.Popen(list(map(str, launch)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"})
    (tmp_path / "one").mkdir()
    alone = run(LAUNCH, tmp_path / "one")
    out, _ = both.communicate(timeout=300)
    assert both.returncode == 0 and alone.returncode == 0, out + alone.stderr
    first, second, one = (json.loads((tmp_path / p).read_text()) for p in ("two/0.json", "two/1.json", "one/one.json"))
    assert first == second # rows, weights, and a resumed training: the same in every process
    assert first[2] == first[3] # resumed = whole
    assert np.allclose(first[1], one[1], atol=1e-5)
    for a, b in zip(first[0], one[0]): assert a == pytest.approx(b, rel=1e-4)
    assert first[3][-1]["val_recon"] == pytest.approx(one[3][-1]["val_recon"], rel=0.1)


def test_nothing_global_is_left_behind():
    "Two trainings side by side, step by step, end as they do one after the other"
    alone = [train(r) for r in (Recipe(3, precision="no"), Recipe(3, precision="bf16", ema=0.9))]
    models = []
    for i, r in enumerate((Recipe(3, precision="no"), Recipe(3, precision="bf16", ema=0.9))):
        torch.manual_seed(0)
        models.append((VAE(size=16, latent=3, width=8), r, torch.get_rng_state()))
    runs, states, rows = [fit(m, vae_loss, *loaders(), r) for m, r, _ in models], [s for *_, s in models], [[], []]
    for _ in range(3):
        for i, it in enumerate(runs):
            torch.set_rng_state(states[i])
            rows[i].append(next(it))
            states[i] = torch.get_rng_state()
    for i in (0, 1): assert rows[i] == alone[i][1] and equal(models[i][0], alone[i][0])


def test_a_training_that_blows_up_says_so(tmp_path):
    with pytest.raises(BadInput, match="smaller lr"): train(Recipe(6, lr=1e9, clip=float("inf")), tmp_path / "s.pt")
    for kwargs in ({"epochs": 0}, {"precision": "fp8"}, {"ema": 1.0}, {"micro_batch": -1}):
        with pytest.raises(BadInput): Recipe(**kwargs)
    with pytest.raises(BadInput, match="not one batch"): list(fit(nn.Linear(3, 1), linear, line(), Line()))


# models handed on

def test_a_model_comes_back_or_is_refused(tmp_path):
    model, about = start(), {"body": "Venus", "product": "sar", "res_m": 75, "stretch": {"low": (1.0,), "high": (2.0,)}}
    save_model(tmp_path, model, about)
    before = torch.get_rng_state()
    again, known = load_model(tmp_path, {"body": "Venus", "bands": 1, "stretch": {"low": (1.0,), "high": (2.0,)}})
    assert equal(model, again) and known["product"] == "sar" and torch.equal(before, torch.get_rng_state()) and not again.training
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    for expect in ({"body": "Mars"}, {"bands": 3}, {"product": "topo"}, {"sha256": "0"}, {"look": "left"}):
        with pytest.raises(ModelMismatch, match=next(iter(expect))): load_model(tmp_path, expect)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"model": "os.system"}, {"model": "planetlab.models.autoencoder.kl_to_unit"}, {"model": "planetlab.models.none.VAE"},
                  {"args": {"size": 32}}, {"args": None}, {"about": None}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(ModelMismatch): load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(Corrupt): load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(model, tmp_path / "model.safetensors") # a pickle in disguise
    with pytest.raises(Corrupt): load_model(tmp_path)


def test_a_shared_model_is_the_folder(tmp_path):
    save_model(tmp_path / "mine", start(), {"body": "Venus"})
    with patch("huggingface_hub.HfApi") as api, patch("huggingface_hub.snapshot_download", return_value=str(tmp_path / "mine")) as fetch:
        api().upload_folder.return_value.oid = "abc"
        assert share_model(tmp_path / "mine", "me/venus") == "abc"
        sent = api().upload_folder.call_args.kwargs
        assert sent["repo_id"] == "me/venus" and set(sent["allow_patterns"]) == {p.name for p in (tmp_path / "mine").iterdir()}
        model, _ = load_model("me/venus", {"body": "Venus"}, revision="abc")
        assert fetch.call_args.args == ("me/venus",) and fetch.call_args.kwargs["revision"] == "abc" and equal(model, start())
        (tmp_path / "mine" / "model.safetensors").write_bytes(b"changed")
        with pytest.raises(Corrupt): share_model(tmp_path / "mine", "me/venus")
        with pytest.raises(Corrupt): load_model("me/venus", revision="abc")
    with pytest.raises(Corrupt): load_model("me/venus") # no revision, no network
    with pytest.raises(Corrupt, match="cannot fetch"): load_model("not a name", revision="main")


# measures

@LAW
@given(seeds, st.integers(1, 9))
def test_measures_look_at_valid_pixels_only_and_stream(seed, batch):
    g = gen(seed)
    x, recon, valid = torch.rand(8, 2, 24, 24, generator=g), torch.rand(8, 2, 24, 24, generator=g), torch.rand(8, 1, 24, 24, generator=g) > 0.01
    valid[0] = False
    bad = torch.where(valid, x, torch.nan), torch.where(valid, recon, 1e9)
    assert torch.equal(ms_ssim(recon, x, valid, BETAS[:2]), ms_ssim(bad[1], bad[0], valid, BETAS[:2]))
    for measure in (ssim, lambda *a: pixel_errors(*a)["psnr"], lambda *a: pixel_errors(*a)["max_abs"]):
        assert torch.equal(measure(recon, x, valid).nan_to_num(-9), measure(bad[1], bad[0], valid).nan_to_num(-9))
        assert measure(recon, x, valid)[0].isnan()
    for way in (constant, bicubic):
        assert torch.equal(way(x, valid), way(bad[0], valid)) and way(x, valid).isfinite().all()
    tables = [mean_scores(iter_scores(bicubic, zip(x.split(n), valid.split(n)))) for n in (batch, 8)]
    assert np.allclose(*tables, atol=1e-6, equal_nan=True) and tables[0].n["rmse"] == 7


def test_too_small_for_a_similarity_is_refused():
    for side, n in ((175, 5), (87, 4), (10, 1)):
        x = torch.rand(1, 1, side, side)
        with pytest.raises(BadInput, match=f"{side} px are too few"): ms_ssim(x, x, x > -1, BETAS[:n])
    with pytest.raises(BadInput, match="10 px are too few"): ssim(x, x, x > -1)
    x = torch.rand(1, 1, 176, 176)
    assert ms_ssim(x, x, x > -1).item() == pytest.approx(1)
