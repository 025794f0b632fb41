# Each target does all its own set-up on a fresh machine; Python 3.11 or later is all it needs.
PYTHON ?= python3
BIN = .venv/bin
# Many containers forbid Python to keep what it compiled; every process would then compile torch and pandas again (22 CPU seconds to import what a pipeline needs, instead of 7).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lab site readme clean
.DEFAULT_GOAL := demo

demo: .venv/base.done  ## Run the Venus pipeline on a procedural Venus
	$(BIN)/planetlab run venus

test: .venv/dev.done  ## Everything that has to pass
	$(BIN)/python tools/unchanged.py $(BIN)/nbdev_export $(BIN)/nbdev_clean
	OMP_NUM_THREADS=1 timeout 20m $(BIN)/nbdev_test --n_workers 2
	timeout 20m $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

lab: .venv/lab.done  ## JupyterLab on the book
	$(BIN)/jupyter lab nbs/index.ipynb

site: .venv/dev.done  ## A readable local site in _docs/, without Quarto
	$(BIN)/python -P tools/site.py

readme: .venv/dev.done  ## README.md from nbs/index.ipynb
	$(BIN)/python -P tools/readme.py

clean:
	rm -rf .venv _docs _proc build dist *.egg-info

# uv installs the same packages from the same index as pip, in a third of the time.
.venv/bin/uv: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "planetlab needs Python 3.11 or later; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt uv

INSTALL = $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e

.venv/base.done: .venv/bin/uv settings.ini setup.py
	$(INSTALL) .
	touch $@

.venv/lab.done: .venv/bin/uv settings.ini setup.py
	$(INSTALL) '.[lab]'
	touch $@ .venv/base.done

.venv/dev.done: .venv/bin/uv settings.ini setup.py
	$(INSTALL) '.[lab,dev,cluster,scale,backbones,segmentation,color,diffusion]'
	touch $@ .venv/base.done .venv/lab.done
