# make demo | test | check | bench | deb | fuzz | services; each sets up what it needs. PYTHON may name another interpreter.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := .venv-torch
TORCH_READY := $(TORCH)/.ready
PEERS := .venv-peers
WORKERS ?= 2

.PHONY: demo test check bench deb fuzz services torch-lane simulation-peers lock clean help

help:
	@sed -n 's/^# //p;s/^\([a-z-]*\):.*## /  make \1: /p' Makefile

$(READY): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; Fieldfare needs Python 3.11 (PYTHON=... names another)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

# litert-torch holds common packages back, so it lives beside the rest.
$(TORCH_READY): pyproject.toml requirements-torch.lock
	$(PYTHON) -m venv $(TORCH)
	$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements-torch.lock -e '.[compression-torch]'
	@touch $@

torch-lane: $(TORCH_READY) ## set up the environment that turns torch models into .tflite (2 GB)

simulation-peers: ## set up the environments of the simulators that benchmarks/simulation.py measures beside ours (2.5 GB)
	$(PYTHON) -m venv $(PEERS)/flower
	$(PEERS)/flower/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock 'flwr[simulation]==1.41.0' 'torch~=2.13.0'
	$(PYTHON) -m venv $(PEERS)/pfl
	$(PEERS)/pfl/bin/python -m pip install --quiet --disable-pip-version-check 'pfl[pytorch]==0.6.0' 'torch~=2.13.0'

demo: $(READY) ## run the whole loop once on this machine
	$(BIN)/fieldfare demo

test: $(READY) ## pass the tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

check: $(READY) ## ruff, mypy, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## run every benchmark; each exits 0 only where its goals hold
	@status=0; for name in agent compression simulation demo; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || status=1; done; exit $$status

deb: $(READY) ## build the agent's Debian package into dist/
	$(BIN)/python packaging/build_deb.py

fuzz: $(READY) ## feed one million changed inputs to everything that reads bytes from others
	$(BIN)/python -m benchmarks.fuzz

services: ## install what the service tests need (Debian, as root): Mosquitto, PostgreSQL, Redis, Chromium, SoftHSM, and for the agent's packaging systemd-analyze, shellcheck
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mosquitto postgresql redis-server chromium iproute2 softhsm2 libengine-pkcs11-openssl systemd shellcheck

lock: $(READY) ## resolve requirements.lock anew from pyproject.toml
	$(BIN)/python -m pip install --quiet 'pip-tools~=7.5'
	$(BIN)/pip-compile --quiet --extra dev --strip-extras --unsafe-package fieldfare --unsafe-package setuptools --no-header --annotation-style=line --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --output-file requirements.lock pyproject.toml

clean: ## remove what the targets made
	rm -rf $(VENV) $(TORCH) $(PEERS) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-report.html
