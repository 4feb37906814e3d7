# One place for every chore: `make help` lists them. All that they make lies in ignored folders.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
OLDEST := $(VENV)/oldest
# Written last of all, so that a half made one is made anew.
MADE := $(VENV)/.made-in
AZURITE := $(VENV)/azurite/node_modules/.bin/azurite-blob
# Twice quiet: errors only, without what pip has to say about its own settings.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Else each start compiles again where PYTHONDONTWRITEBYTECODE is set, as in containers.
COMPILE := $(BIN)/python -m compileall -q gc drivers
PYTEST_ARGS ?= -n 2
# From the command line only, never from the environment: CONFIG names what `make run` looks at.
CONFIG :=
# Not every shell puts the home there, as ~ is not at the beginning of the word.
CONFIG_FILE = $(if $(filter ~/%,$(firstword $(CONFIG))),$(HOME)/$(patsubst ~/%,%,$(CONFIG)),$(CONFIG))
ARGS :=
EXTRAS :=
LONG :=

export PIP_ROOT_USER_ACTION := ignore
# Whatever pip.conf says: no virtual environment takes it.
export PIP_USER := 0
# Only what is installed here may be imported.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

comma := ,
EXTRAS_STAMP := $(VENV)/.installed$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))

.PHONY: help run test oldest bench scale readme clean

# The commands of a checkout that was moved name the folder where it was: then all is made anew.
ifneq ($(shell cat $(MADE) 2>/dev/null),$(CURDIR))
.PHONY: $(MADE)
endif

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile
	echo "  make run CONFIG=/etc/docker/registry/config.yml    a dry run on your own registry"
	echo "           ARGS=-m adds options, EXTRAS=s3 adds what a driver needs (s3, gcs, azure)"
	echo "  make test LONG=1 PYTEST_ARGS='-n 4 -k guard'       the long tests; other pytest options"

# --dry-run comes last, so that nothing in ARGS can take it back. The run file stays in here.
run: $(EXTRAS_STAMP) ## install here and show a collection on a demo registry
ifeq ($(CONFIG),)
	@$(BIN)/python benchmarks/demo.py
else
	$(BIN)/registry-garbage-collect --state-dir .demo/state $(ARGS) --dry-run "$(CONFIG_FILE)"
endif

test: $(VENV)/.installed-for-tests $(AZURITE) ## install what the tests need and run them all
	@contrib/setup/packages docker-registry skopeo redis-server promtool=prometheus prometheus-pushgateway \
		rsyslogd=rsyslog systemd-analyze=systemd logrotate crontab=cron shellcheck mandoc zsh fish \
		kubectl=kubernetes-client
	contrib/setup/browser $(VENV)
	echo "==> ruff"
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	echo "==> mypy --strict"
	$(BIN)/mypy --strict
	echo "==> sdist and wheel"
	contrib/setup/dist $(BIN)/python dist
	echo "==> pytest $(PYTEST_ARGS)$(if $(LONG), --long)"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(PYTEST_ARGS) $(if $(LONG),--long)

# What is asked for by name is installed first, as old as may be; what tests it does not renew that.
oldest: $(VENV)/.installed-for-tests $(AZURITE) ## run the tests with the oldest libraries allowed
	@$(PIP) install uv
	$(BIN)/python -m venv --clear $(OLDEST)
	ln -s ../azurite $(OLDEST)/azurite
	export VIRTUAL_ENV="$(CURDIR)/$(OLDEST)"
	$(BIN)/uv pip install --quiet --resolution lowest-direct --requirement pyproject.toml --all-extras
	$(BIN)/uv pip freeze >$(OLDEST)/oldest.txt
	$(BIN)/uv pip install --quiet --constraint $(OLDEST)/oldest.txt --editable . --group dev
	PATH="$(CURDIR)/$(OLDEST)/bin:$(CURDIR)/$(BIN):$$PATH" $(OLDEST)/bin/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.installed ## measure against docker-registry and find (takes long)
	@contrib/setup/packages docker-registry
	$(BIN)/python benchmarks/side_by_side.py $(ARGS)

scale: $(VENV)/.installed-for-tests ## measure large registries and draw it (takes long)
	@contrib/setup/packages docker-registry
	$(BIN)/python benchmarks/scale.py $(ARGS)

readme: $(VENV)/.installed-for-tests ## make README's --help, man pages and completions anew
	@$(BIN)/python contrib/fill_help.py
	$(BIN)/python contrib/build_share.py

clean: ## remove everything that was made here
	rm -rf $(VENV) .demo .bench dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@contrib/setup/venv $(VENV)
	echo "$(CURDIR)" >$@

$(VENV)/.installed: $(MADE) pyproject.toml gc/registry_gc/__init__.py
	@echo "==> installing registry-garbage-collect into $(VENV)"
	$(PIP) install --editable .
	$(COMPILE)
	touch $@

$(VENV)/.installed-for-tests: $(MADE) pyproject.toml gc/registry_gc/__init__.py
	@echo "==> installing registry-garbage-collect, its extras and what tests it into $(VENV)"
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --editable '.[all]' --group dev
	$(COMPILE)
	touch $@ $(VENV)/.installed

$(AZURITE): | $(MADE)
	@contrib/setup/packages node=nodejs npm
	echo "==> installing azurite into $(VENV)"
	npm install --prefix $(VENV)/azurite --silent --no-audit --no-fund azurite@3.35

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "==> installing the extras $(EXTRAS)"
	$(PIP) install --editable '.[$(EXTRAS)]'
	touch $@
