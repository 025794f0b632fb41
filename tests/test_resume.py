"Killed at any moment, a run goes on and ends in the same numbers"
import json
import os
import random
import signal
import subprocess
import time

import numpy as np
import pandas as pd
from conftest import PLANETLAB, finished
from safetensors.numpy import load_file


def same_results(a, b):
    "Models, tables and metrics of two runs are equal; timing is not part of them"
    assert json.loads((a / "metrics.json").read_text()) == json.loads((b / "metrics.json").read_text())
    models = sorted(p.relative_to(a) for p in a.rglob("model.safetensors"))
    assert models
    for name in models:
        x, y = load_file(a / name), load_file(b / name)
        assert x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x), name
    tables = sorted(p.name for p in a.glob("*.parquet"))
    assert len(tables) >= 3 and tables == sorted(p.name for p in b.glob("*.parquet"))
    for name in tables:
        x, y = (pd.read_parquet(f / name).drop(columns="folder", errors="ignore") for f in (a, b))
        pd.testing.assert_frame_equal(x, y, check_exact=True)


def killed(out, moment):
    "Start the smoke run and kill it when `moment()` is true; its kernel ends by itself. False if the run ended before"
    process = subprocess.Popen([PLANETLAB, "run", "venus", "-f", "venus_smoke", "--out", out],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        if moment():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    return False


def test_killed_at_three_moments_a_run_resumes_to_the_same_result(smoke, tmp_path):
    out, rng = tmp_path / "run", random.Random(0)
    for mark in ("world/sar.tif", "state_topo.pt", "latents_sar.parquet"): # while a file is written, or soon after
        wait = rng.uniform(0, 0.3)

        def moment():
            if not (out / mark).exists(): return False
            time.sleep(wait)
            return True
        assert killed(out, moment), f"ended before it was killed at {mark}"
        assert json.loads((out / "run.json").read_text())["status"] == "started"
        assert not (out / "venus.html").exists()
    finished("venus", "venus_smoke", out)
    same_results(smoke, out)
