# Each target makes .venv by itself; nothing is done again when pyproject.toml and constraints.txt are unchanged.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# pip asks `rustc` for its version, and rustup then writes its settings: into .venv, not into anybody's home.
export RUSTUP_HOME := $(CURDIR)/$(VENV)/rustup

.PHONY: demo test lint types bench docs clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dicom,medical,ml,ocr,s3,gdrive,dropbox,azure,sftp,keyring,net,dev]'
	@# Only the data in these two are used: the programs that they come with, and what those need, are left out.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps deepbet pydeface
	touch $@

demo: $(READY)
	$(BIN)/smp demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/encrypt.py

docs: $(READY)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
