# Set-up, checks and the demo. `make help` lists the targets; every target sets up what it needs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WEB := export/runtime/web
WEB_INSTALLED := $(WEB)/node_modules/.installed
BUNDLE ?= runs/demo/bundle
OUTPUT ?= dist/web
OPTIMUM := .venv-optimum
OPTIMUM_INSTALLED := $(OPTIMUM)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# Containers like to set this, and uv installs no bytecode: every process would compile what it
# imports anew, 8 s for `rekd-edge check`.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: $(INSTALLED) ## train, distill, export, check and measure on real text (minutes, 2 cores)
	$(BIN)/rekd-edge compare recipes/text/movie-review-snippets.yaml --output runs/demo --export

.PHONY: bench
bench: $(INSTALLED) ## the latency table against every alternative, into runs/ (hours, 2 cores)
	$(BIN)/rekd-edge bench --suite latency --output runs

.PHONY: gpu-pack
gpu-pack: $(INSTALLED) ## pack what benchmarks/gpu needs on a CUDA machine without a network; CONTENTS="text ..."
	PYTHON=$(BIN)/python benchmarks/gpu/pack.sh $(CONTENTS)

.PHONY: test
test: lint ## lint, types, import rules and all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile

.PHONY: test-web
test-web: $(INSTALLED) $(WEB_INSTALLED) ## the browser runtime in node and Chromium; BUNDLES="A B" are compared too
	REKD_WEB_REQUIRE_BROWSER=1 REKD_WEB_BUNDLES="$(BUNDLES)" \
		$(BIN)/python -m pytest tests/integration/test_web_runtime.py

.PHONY: test-optimum
test-optimum: $(OPTIMUM_INSTALLED) ## bundles in optimum and in pipelines; BUNDLES="A B" are opened too
	OMP_NUM_THREADS=1 REKD_OPTIMUM_PYTHON="$(abspath $(OPTIMUM))/bin/python" \
		REKD_OPTIMUM_BUNDLES="$(BUNDLES)" $(BIN)/python -m pytest tests/integration/test_optimum.py

.PHONY: test-slow
test-slow: $(INSTALLED) ## the slow tests: installed wheel, whole runs
	$(BIN)/python -m pytest -m slow

.PHONY: test-more
test-more: $(INSTALLED) ## the property tests over examples not tried before (`make test` repeats the same)
	for round in 1 2 3 4 5; do \
		$(BIN)/python -m pytest -q tests/property --hypothesis-profile=new-examples; \
	done

.PHONY: test-tools
test-tools: browser ssh-server ## install Chromium and an OpenSSH server for tests, where apt may (Debian, Ubuntu; as root)

# $(call with-apt,PACKAGE,WHAT): a policy-rc.d keeps Debian from starting services it installs.
define with-apt
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "no $(2), and apt may not install it here: its tests will be skipped" >&2; \
	else \
		policy=/usr/sbin/policy-rc.d; \
		if [ ! -e "$$policy" ]; then \
			printf '#!/bin/sh\nexit 101\n' >"$$policy"; chmod +x "$$policy"; trap 'rm -f "$$policy"' EXIT; \
		fi; \
		{ timeout 120 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 300 \
			apt-get install -y -qq --no-install-recommends $(1); } >/dev/null 2>&1 || \
			echo "apt could not install $(2): its tests will be skipped" >&2; \
	fi
endef

.PHONY: browser
browser: ## Chromium alone
ifeq ($(shell command -v chromium chromium-browser google-chrome 2>/dev/null),)
	$(call with-apt,chromium,Chromium)
endif

# Where an init system would start the server at the next boot, it is not ours to install.
.PHONY: ssh-server
ssh-server: ## an OpenSSH server alone, never started but by tests, on 127.0.0.1
ifeq ($(shell PATH="$$PATH:/usr/sbin" command -v sshd 2>/dev/null),)
ifneq ($(wildcard /run/systemd/system),)
	@echo "no OpenSSH server here, and installing one would start it: its tests will be skipped" >&2
else
	$(call with-apt,openssh-server openssh-client,OpenSSH server)
endif
endif

.PHONY: lint
lint: $(INSTALLED) ## ruff, pyright and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: $(INSTALLED) ## format the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: docs
docs: $(INSTALLED) ## write docs/recipe.md from the schema, and the tables of recorded figures
	$(BIN)/python -m rekd_edge.recipe.reference docs/recipe.md
	$(BIN)/python -m rekd_edge.recipe.deviations docs/deviations.md benchmarks/results/deviations.json
	$(BIN)/python benchmarks/readme.py benchmarks/results README.md docs/methods.md

.PHONY: runtime-wheel
runtime-wheel: $(INSTALLED) ## build dist/rekd_edge_runtime-*.whl, the runtime of bundles as a package
	cd export/runtime/python && $(abspath $(BIN))/python -m hatchling build -t wheel -d $(abspath dist)

.PHONY: constraints
constraints: $(INSTALLED) ## resolve constraints.txt anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 \
		--extra onnx --extra openvino --extra loadgen --extra trt-rtx --extra sweep --extra figures --extra dev \
		--generate-hashes \
		--no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make constraints" --quiet --output-file constraints.txt
	$(BIN)/uv pip compile --group optimum --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make constraints" --quiet --output-file constraints-optimum.txt

.PHONY: setup
setup: $(INSTALLED) ## make .venv and install everything into it

.PHONY: web
web: $(WEB_INSTALLED) ## a static page that answers from BUNDLE (runs/demo/bundle) in OUTPUT (dist/web)
	node $(WEB)/build.mjs --bundle "$(BUNDLE)" --output "$(OUTPUT)"

.PHONY: web-packages
web-packages: $(WEB_INSTALLED)

.PHONY: clean
clean: ## remove .venv and caches; runs/ is kept
	rm -rf $(VENV) $(OPTIMUM) .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist $(WEB)/node_modules

$(WEB_INSTALLED): $(WEB)/package.json $(WEB)/package-lock.json
	@node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 20 || (major == 20 && minor >= 12) ? 0 : 1)' || \
		{ echo "error: needs node 20.12 or newer, and npm" >&2; exit 4; }
	npm ci --prefix $(WEB) --silent
	@touch $@

# optimum's ONNX part needs an older transformers. Most packages are those of .venv, linked from uv's cache.
$(OPTIMUM_INSTALLED): constraints-optimum.txt | $(INSTALLED)
	@$(BIN)/python -m venv --clear --without-pip $(OPTIMUM)
	@$(BIN)/uv pip install -q --python $(OPTIMUM)/bin/python --require-hashes -r constraints-optimum.txt || \
		$(BIN)/python -m pip --python $(OPTIMUM)/bin/python install -qq --require-hashes \
			-r constraints-optimum.txt
	@touch $@

# A version manager can leave a `python3.12` that does not run, so each candidate is tried.
$(INSTALLED): constraints.txt pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for candidate in python3.12 python3.11 python3; do \
			if "$$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; then \
				echo "making $(VENV) with $$("$$candidate" --version)"; \
				"$$candidate" -m venv --clear $(VENV); \
				break; \
			fi; \
		done; \
		if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
			echo "error: needs Python 3.11 or 3.12 with the venv module (on Debian: apt-get install python3-venv)" >&2; \
			exit 4; \
		fi; \
	fi
	@echo "installing the pinned packages (some 6 GB, minutes the first time)"
	@# uv installs the same pinned files several times faster; pip is the way out where it cannot.
	@$(BIN)/python -m pip install -qq --require-hashes \
			-r <(sed -n '/^uv==/,/[^\\]$$/p' constraints.txt) && \
		$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r constraints.txt || \
		$(BIN)/python -m pip install -qq --require-hashes -r constraints.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@
