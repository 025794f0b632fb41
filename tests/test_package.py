"The wheel, alone in an empty environment and an empty folder"
import json
import os
import subprocess
import sys

from conftest import ROOT


def test_the_wheel_runs_in_an_empty_environment(tmp_path):
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "build", "-q", "--python", sys.executable, "--out-dir", tmp_path / "dist", ROOT], check=True)
    wheel, = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, tmp_path / "env"], check=True)
    subprocess.run([*uv, "pip", "install", "-q", "--python", tmp_path / "env", "-c", ROOT / "constraints.txt", wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run([tmp_path / "env" / "bin" / "planetlab", "run", "venus", "-f", "venus_smoke"], cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, = (empty / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished" and (folder / "venus.html").exists()
    assert "planetlab[lab]" in (folder / "venus.ipynb").read_text()
