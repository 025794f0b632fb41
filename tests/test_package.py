"The wheel, alone in an empty environment and an empty folder"
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile

from conftest import ROOT


def test_the_wheel_runs_in_an_empty_environment(tmp_path):
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "build", "-q", "--python", sys.executable, "--out-dir", tmp_path / "dist", ROOT], check=True)
    wheel, = (tmp_path / "dist").glob("*.whl")
    sdist, = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as tar: packed = {name.split("/", 1)[-1] for name in tar.getnames()}
    assert {"settings.ini", "README.md", "LICENSE", "CITATION.cff", "SECURITY.md", "planetlab/py.typed", "nbs/pipelines/venus.ipynb", "nbs/pipelines/published.yaml"} <= packed
    with zipfile.ZipFile(wheel) as zipped:
        names = set(zipped.namelist())
        meta = zipped.read(next(n for n in names if n.endswith("METADATA"))).decode()
    ours = {p.relative_to(ROOT / "nbs").as_posix() for pattern in ("*.ipynb", "*.yaml", "*.css", "params/*.yaml") for p in (ROOT / "nbs" / "pipelines").glob(pattern)}
    assert {f"planetlab/{n}" for n in ours} | {"planetlab/py.typed", "planetlab/__main__.py"} <= names and not [n for n in names if n.startswith("tests/")]
    assert "\nLicense-Expression: Apache-2.0\n" in meta and {"lab", "cluster", "scale", "color", "diffusion"} <= set(re.findall(r"^Provides-Extra: (.+)$", meta, re.M))
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, tmp_path / "env"], check=True)
    subprocess.run([*uv, "pip", "install", "-q", "--python", tmp_path / "env", "-c", ROOT / "constraints.txt", wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    asked = subprocess.run([tmp_path / "env" / "bin" / "python", "-m", "planetlab", "doctor"], cwd=empty, env=env, capture_output=True, text=True)
    assert asked.returncode == 0 and "Nothing would fail" in asked.stdout and "absent  extra lab" in asked.stdout, asked.stdout + asked.stderr
    done = subprocess.run([tmp_path / "env" / "bin" / "planetlab", "run", "venus", "-f", "venus_smoke"], cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, = (empty / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished" and "published" in (folder / "venus.html").read_text()
    assert "explorer.html" in (folder / "venus.html").read_text() and (folder / "explorer.html").stat().st_size > 1e5 # without ipywidgets
