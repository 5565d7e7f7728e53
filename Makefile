# Each target sets up what it needs; a second call takes seconds.
.PHONY: setup demo test test-fast docs check bench results
export UV_PROJECT_ENVIRONMENT := .venv
PYTHON := .venv/bin/python
STAMP := .venv/.locked

setup: $(STAMP)

# uv is bootstrapped into a small environment of its own where the machine has none.
$(STAMP): requirements.lock pyproject.toml
	@uv=$$(command -v uv) || { python3 -m venv .venv-uv && .venv-uv/bin/pip -q install uv && uv=.venv-uv/bin/uv; }; \
	test -x $(PYTHON) || $$uv venv -q --python ">=3.11" .venv; \
	echo "Installing what requirements.lock names (about a minute; seconds when it is cached)" >&2; \
	$$uv pip sync -q --compile-bytecode --python $(PYTHON) requirements.lock && \
	$$uv pip install -q --python $(PYTHON) --no-deps -e .
	@touch $@

demo: setup
	.venv/bin/kauli demo

# Two workers of one thread each; a file stays on one worker.
test: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

# The inner loop, under a minute: the test files that import neither torch nor Ray, found by reading their imports.
test-fast: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --fast -m "not weights"

# The parts of docs/ that are generated; a test compares them.
docs: setup
	$(PYTHON) docs/generate.py

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@# mypy can't see through an editable install: it checks the wheel, which tests the packaging as well
	rm -rf build/check && mkdir -p build/check
	$(PYTHON) -m pip install -q --no-deps --no-build-isolation --target build/check .
	cd build/check && MYPYPATH=. ../../$(PYTHON) -m mypy --config-file ../../pyproject.toml -p kauli.models -p kauli.training -p kauli.serving -p kauli.deploy

bench: setup
	$(PYTHON) tests/bench/training.py --examples 48 --results RESULTS.md
	$(PYTHON) tests/bench/serving.py --results RESULTS.md
	.venv/bin/kauli fetch kauli-clip
	$(PYTHON) tests/bench/images.py --results RESULTS.md
	$(PYTHON) tests/bench/align.py --results RESULTS.md
	$(PYTHON) tests/bench/transcribe.py --results RESULTS.md

results: setup
	$(PYTHON) tests/bench/quality.py
