"One finished smoke run and the real data, shared by the tests that need them"
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1") # two workers share two cores

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
PLANETLAB = Path(sys.executable).parent / "planetlab"


def command(*args, cwd, **kwargs):
    "The command line as a user types it, in any folder"
    return subprocess.run([PLANETLAB, *map(str, args)], cwd=cwd, capture_output=True, text=True, **kwargs)


@pytest.fixture
def planetlab(tmp_path):
    return lambda *args, **kwargs: command(*args, **{"cwd": tmp_path, **kwargs})


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "A run of the smoke preset that nothing interrupted"
    out = tmp_path_factory.getbasetemp().parent / f"smoke{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}" / "run"
    out.parent.mkdir(exist_ok=True)
    with FileLock(out.parent.with_suffix(".lock")): # the workers share one, made by the first to ask
        if not (out / "venus.html").exists():
            done = command("run", "venus", "-f", "venus_smoke", "--out", out, cwd=out.parent)
            assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def jartool():
    "Real Magellan images with expert labels"
    folder = ROOT.parent / "shared" / "data" / "venus_jartool"
    if not folder.is_dir(): pytest.skip(f"real data absent: {folder.name} is not in ../shared/data")
    return folder


SLOW = ("test_map_scene", "test_discover", "test_resume", "test_site", "test_pipelines", "test_package", "test_maps", "test_outputs", "test_blocks",
        "test_vectors", "test_calibrate", "test_predict", "test_representations")


def pytest_collection_modifyitems(items):
    "The longest files begin first, so that no worker waits for another at the end"
    items.sort(key=lambda i: SLOW.index(i.path.stem) if i.path.stem in SLOW else len(SLOW))
