"Everything but the layout of the package comes from settings.ini, the only place for it"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {key.removesuffix("_requirements"): value.split()
          for key, value in cfg.items() if key.endswith("_requirements")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    license_expression="Apache-2.0", # SPDX
    license_files=["LICENSE"],
    keywords=cfg["keywords"],
    classifiers=["Development Status :: 2 - Pre-Alpha", "Intended Audience :: Science/Research",
                 "Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: GIS"],
    python_requires=">=" + cfg["min_python"],
    # The pipeline notebooks travel inside the wheel as planetlab/pipelines.
    packages=[*find_packages(include=["planetlab", "planetlab.*"]), "planetlab.pipelines"],
    package_dir={"planetlab.pipelines": "nbs/pipelines"},
    package_data={"planetlab": ["py.typed"], "planetlab.pipelines": ["*.ipynb", "*.css", "*.js", "*.html", "published.yaml", "params/*.yaml"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
)
