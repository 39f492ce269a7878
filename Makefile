# `make demo` and `make test` need Python 3.11 or newer and make; they create .venv themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types tests fuzz benchmark clean

demo: .venv/.installed
	$(BIN)/trainability compare --out runs/demo --overwrite

test: .venv/.installed
	@for part in lint types tests; do \
	  begin=$$(date +%s); $(MAKE) --no-print-directory $$part || exit 1; \
	  echo "$$part took $$(($$(date +%s) - begin)) s"; \
	done

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/mypy

# Each test runs on one thread, so there is a process for every core.
tests: .venv/.installed
	$(BIN)/pytest -n auto --dist loadfile

fuzz: .venv/.installed
	$(BIN)/python -m tests.fuzz --count 20000

benchmark: .venv/.installed
	$(BIN)/python benchmarks/overhead.py --out results/overhead.json

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiments,dev]'
	touch $@

clean:
	rm -rf .venv dist .*_cache
