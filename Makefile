# v4cli: what you would type most often. `make` alone lists the targets.
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
TRITONS := 3.6.0 3.9.0
# one more than cores: some tests wait
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
COMPILED := budgets or librarys or handoff or interpreter
# glibc: keep freed memory, training allocates the same large tensors at every step
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184

.PHONY: help run test test-slow test-triton lint nano nano-newcomers nano-drafter nano-eval nano-recall nano-prices bench-quant bench-convert bench-contexts bench-kernels bench-repl gpu-check gpu-table options recording clients wheels clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

KERNELS := $(wildcard kernels/CMakeLists.txt kernels/include/* kernels/cpu/*)

$(VENV)/installed: pyproject.toml constraints.txt $(KERNELS)
	test -d $(VENV) || python3 -m venv $(VENV)
	$(PIP) -e '.[bench,grammar]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[test]'
	touch $@

run: $(VENV)/installed  ## install, then ask the embedded model something
	$(VENV)/bin/v4 run --stats "Hello, who are you?" < /dev/null

test: $(VENV)/installed-test  ## install what tests need and run them
	$(PYTHON) -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/installed-test  ## the tests that take minutes, files side by side
	$(PYTHON) -m pytest -m slow --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile

test-triton: $(VENV)/installed-test  ## GPU kernels as the oldest and the newest Triton compile them (half an hour, 800 MB in build/)
	for version in $(TRITONS); do \
	    test -d build/triton-$$version || $(VENV)/bin/pip install --quiet --no-deps --target build/triton-$$version triton==$$version || exit 1; \
	    PYTHONPATH=build/triton-$$version $(PYTHON) -m pytest tests/gpu -k "$(COMPILED)" || exit 1; \
	done

lint: $(VENV)/installed-test  ## style, types of the engine room, layering
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

nano: $(VENV)/installed  ## train the embedded model from nothing (about 100 minutes on 2 idle cores)
	$(PYTHON) -m v4cli.nano.vocab v4cli/nano/checkpoint/tokenizer.json
	$(KEEP_MEMORY) $(PYTHON) -m v4cli.nano.train --stage start
	$(KEEP_MEMORY) $(PYTHON) -m v4cli.nano.train --stage polish
	$(KEEP_MEMORY) $(PYTHON) -m v4cli.nano.train --stage long
	$(KEEP_MEMORY) $(PYTHON) -m v4cli.nano.train --stage settle

nano-newcomers: $(VENV)/installed  ## after make nano: what newcomers say, beside what it could before (about 110 minutes on 2 idle cores)
	for stages in "meet finish" drill again; do \
	    rm -rf build/nano && mkdir -p build && cp -r v4cli/nano/checkpoint build/nano || exit 1; \
	    for stage in $$stages; do $(KEEP_MEMORY) $(PYTHON) -m v4cli.nano.train --stage $$stage || exit 1; done; \
	    share=0.8; [ "$$stages" != again ] || share=0.6; \
	    $(PYTHON) -m v4cli.nano.average build/nano v4cli/nano/checkpoint --share $$share || exit 1; \
	done

nano-drafter: $(VENV)/installed  ## train a DSpark drafter for the embedded model as it is, and say how often it is right (20 minutes of a core)
	$(KEEP_MEMORY) $(PYTHON) -m v4cli.nano.train_heads
	$(PYTHON) -m v4cli.nano.acceptance

nano-eval: $(VENV)/installed  ## rates of the embedded model on held-out dialogues and first prompts
	$(PYTHON) -m v4cli.nano.evaluate --wrong

nano-recall: $(VENV)/installed  ## facts told 1k to 64k tokens ago, as CSV (minutes; TOKENS="1000 1000000" for others)
	$(PYTHON) -m v4cli.nano.recall --tokens $(or $(TOKENS),1000 4000 16000 64000)

nano-prices: $(VENV)/installed  ## figures of the embedded model in every recipe (half an hour on 2 idle cores)
	for quant in native q4 q3 mix q2; do \
	    $(VENV)/bin/v4 quantize nano build/nano-$$quant --quant $$quant || exit 1; \
	    $(VENV)/bin/v4 eval build/nano-$$quant --ctx 16384 --only kld,ppl,tools || exit 1; \
	done

bench-quant: $(VENV)/installed  ## price of quantization, as CSV (minutes)
	$(PYTHON) tests/bench/quant_price.py

bench-convert: $(VENV)/installed  ## conversion of two Flash layers, as CSV (minutes, 20 GB of disk in DIR)
	$(PYTHON) tests/bench/conversion.py $(or $(DIR),build/bench)

bench-contexts: $(VENV)/installed  ## saving, loading and sharing contexts, as CSV (a minute, 1 GB of disk in DIR)
	$(PYTHON) tests/bench/contexts.py $(or $(DIR),build/bench)

bench-kernels: $(VENV)/installed  ## CPU kernels against this machine's ceilings, as CSV
	$(VENV)/bin/v4 bench kernels

gpu-check: $(VENV)/installed-test  ## all that a GPU has to show, into bench/results (up to 25 minutes; GPU=1 for another)
	$(PYTHON) -m v4cli.bench.gpu check --gpu $(or $(GPU),0)

gpu-table: $(VENV)/installed  ## write the table of bench/results into README.md
	$(PYTHON) -m v4cli.bench.gpu_table README.md bench/results

bench-repl: $(VENV)/installed  ## time to the prompt and from key to screen, as CSV (a minute)
	$(PYTHON) tests/bench/repl_latency.py

options: $(VENV)/installed-test  ## write the table of options into docs/settings.md
	$(PYTHON) tests/cli/option_table.py docs/settings.md

recording: $(VENV)/installed-test  ## draw README-chat.svg and docs/pictures from real runs (minutes)
	$(PYTHON) tests/repl/record.py README-chat.svg docs/pictures

clients: $(VENV)/installed-test  ## Claude Code, Codex, opencode, aider and llm from npm and PyPI, against nano (minutes, 2 GB in build/)
	$(PYTHON) tests/serve/real_clients.py

wheels: $(VENV)/installed  ## wheels for Linux, macOS and Windows into dist/, checked (the first time it compiles C libraries: minutes)
	$(PIP) -e '.[wheels]'
	$(PYTHON) tools/wheels.py dist

clean:  ## remove the environment and build products
	rm -rf $(VENV) build dist
