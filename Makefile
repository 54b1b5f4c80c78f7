# Everything is safe to repeat. PYTHON picks the interpreter (3.11 or newer); ARGS go to the launcher or pytest:
# make serve ARGS='run=other engine=sim', make test ARGS=tests/unit/test_docs.py
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Most tests wait for processes that start: three at a time fill two cores. Engines, Slurm and browsers run for real
# here, and starve now and then: what fails is run once more, with nothing beside it.
SIDE_BY_SIDE := -n 3 --no-loadscope-reorder
export ONCE_MORE := what failed above is run once more; what fails twice has failed

.PHONY: help install serve check test unit bench-peers soak
help:
	@echo "make serve    install, then serve a tiny model on two real vLLM engines on this machine (Ctrl-C stops it)"
	@echo "make test     run every test; as root on Debian it installs Slurm and Chromium for those that need them"
	@echo "make check    lint and type-check     make unit    the unit tests only     make install    build .venv only"
	@echo "make soak     what users see while workers come and go, on a real Slurm of its own (Debian, root)"
	@echo "make bench-peers    measure Sluice beside other relays, which it installs for that (over 10 minutes)"
	@echo "ARGS='...' goes to the launcher, pytest or the benchmark; PYTHON=python3.12 picks what .venv is made with"

install: $(STAMP)

$(STAMP): pyproject.toml slurm/install_cpu.sh
	$(PYTHON) -m venv $(VENV)
	bash slurm/install_cpu.sh $(BIN)/python
	touch $@

serve: install
	$(BIN)/python -m launcher +cluster=local $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	bash tests/install_slurm.sh
	bash tests/install_monitoring.sh
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS) || { test $$? = 1 && echo "$$ONCE_MORE" && $(BIN)/python -m pytest --last-failed $(ARGS); }

unit: install
	$(BIN)/python -m pytest tests/unit $(ARGS)

soak: install
	bash tests/install_slurm.sh
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.chaos kill_controller=true
	$(BIN)/python -m benchmarks.chaos rows=soak users=200 step_ms=100 $(ARGS)

bench-peers: install
	$(BIN)/python -m benchmarks.peers $(ARGS)
