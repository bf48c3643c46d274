# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench docs distributions clean

demo: $(VENV)/.installed
	$(BIN)/simflow train quickstart --out runs/quickstart
	@echo "Look at runs/quickstart/report.html"

# The tests hold on any processor and in any order: ATEN_CPU_CAPABILITY=default (or avx2) make test OPTIONS=--random-order
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(OPTIONS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/simflow bench

# The site, into site/; every warning is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

# The wheel and the source distribution, each installed by itself in an empty environment and imported from elsewhere.
distributions:
	rm -rf dist build/distributions
	$(PYTHON) -m venv build/distributions
	build/distributions/bin/python -m pip install --quiet build
	build/distributions/bin/python -m build --outdir dist
	for file in dist/*.whl dist/*.tar.gz; do \
		build/distributions/bin/python -m pip install --quiet --no-deps --force-reinstall $$file && \
		(cd build/distributions && bin/python -I -c "import simflow_plugin; print('$$file', simflow_plugin.__version__); \
		from simflow_plugin.resources import resource_dir; assert (resource_dir('configs') / 'quickstart.yaml').is_file()" \
		) || exit 1; \
	done

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
