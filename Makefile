# One environment in .venv, made once and made again only when the project's requirements change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# `make demo FULL=1` is the long demo; OUT=FOLDER puts either elsewhere.
FULL ?= 0
OUT ?=
# One more than two cores: tests of Ray wait. Each loads the libraries and makes what tests share for itself.
TESTERS ?= 3

# glibc gives large tensors back to the kernel and page faults are slow; see docs/design.md.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 68719476736
export MALLOC_TOP_PAD_ := 268435456
# Compiled modules are kept, whatever the shell says: tests and the demo start some hundred processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-long lint bench docs ablation-quick clean

demo: $(READY)
	$(BIN)/python -m pipelines.quickstart $(if $(filter 1,$(FULL)),--full) $(if $(OUT),--out $(OUT))

# Threads that wait let others run: tests share the cores with each other and with what they start.
test test-long: export OMP_WAIT_POLICY := PASSIVE
# In the order of their folders: reordered, files of few tests come last, and the longest have few.
test: $(READY)
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

# Kills at many random moments, faults of disks and object stores, in real clusters: the better part of an hour.
test-long: $(READY)
	$(BIN)/python -m pytest -m long

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m pipelines.bench

# The site of the documentation, out/site/index.html; a dead link, or a name that is not there, fails it.
docs: $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# SAM, vanilla and SUM in small; fails unless training beats SAM.
ablation-quick: $(READY)
	$(BIN)/python -m pipelines.microworld.ablation --quick --out out/ablation-quick

clean:
	rm -rf $(VENV) out

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps -e .
	$(BIN)/python -m pipelines.install
	# mypy follows no editable install: the folders, by the name that they are imported by
	mkdir -p $(VENV)/folders/sum_factory
	ln -sfn $(foreach folder,labelgen trainer shared pipelines,../../../$(folder)) $(VENV)/folders/sum_factory/
	touch $@
