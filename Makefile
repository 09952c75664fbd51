# Two commands do everything: `make demo` and `make test`. Both set up the virtual environment first.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Two processes, as most tests keep one core busy; a file's tests stay together, and share their fixtures.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-slow test-hosts docs lint install clean

demo: $(READY)
	$(BIN)/gkd-scale demo

test: $(READY) lint
	$(PYTEST) -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

# Simulated Ray clusters, killed searches: many minutes on 2 cores.
test-slow: $(READY)
	$(PYTEST) -m slow

# Two hosts of network namespaces, with sshd in each, under every launcher: as root, on Linux, with the
# packages iproute2, openssh-server, pdsh and procps.
test-hosts: $(READY)
	$(PYTEST) -m hosts tests/hosts

# The site, in build/docs. A warning is an error, as in the tests.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(READY)

# torch goes first: DeepSpeed looks for it while it is built.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch torchvision
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
