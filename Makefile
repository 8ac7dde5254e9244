PYTHON ?= python3
BIN = .venv/bin
START = notebooks/00_start_here.ipynb
TRY ?= Once upon a time
# What the tests compare with: another version, another index, or none.
TORCH ?= 2.13.0
TORCH_INDEX ?=

LAB_FLAGS = --LabApp.default_url=/lab/tree/$(START)
ifeq ($(shell uname -s)$(DISPLAY)$(WAYLAND_DISPLAY),Linux)
LAB_FLAGS += --no-browser
endif
ifeq ($(shell id -u),0)
LAB_FLAGS += --allow-root
endif

.PHONY: lab test try check slow reference notebooks colab wheel compat picture plan-table what-is-read
# Huge pages for the kernels: a training step on a CPU then spends less on fresh memory.
lab: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
lab: .venv/lab
	$(BIN)/jupyter lab $(LAB_FLAGS) $(ARGS)

# Two processes, a file of tests at a time in each: most of the time goes into compiling, on one core.
test: .venv/torch-$(TORCH)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

try: .venv/base
	$(BIN)/gptj-lab generate "$(TRY)" $(ARGS)

check: .venv/torch-$(TORCH)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

slow: .venv/torch-$(TORCH)
	$(BIN)/python -m pytest -m slow $(ARGS)

# The lens against TransformerLens on the same weights.
reference: .venv/torch-$(TORCH)
	$(BIN)/pip install -q -e '.[reference]'
	$(BIN)/python -m pytest -m slow tests/lens/test_transformer_lens.py $(ARGS)

# Without bars, which a saved notebook would show as they were at first.
notebooks: .venv/torch-$(TORCH)
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.store_widget_state=False $(wildcard notebooks/*.ipynb)
	$(BIN)/jupyter nbconvert --coalesce-streams --inplace $(wildcard notebooks/*.ipynb)

colab: .venv/test
	$(BIN)/python colab/build.py

# For a Colab that can't reach GitHub: dragged into its Files, the notebooks install from it.
wheel: .venv/bin/python
	$(BIN)/pip wheel -q --no-deps -w dist .
	@ls dist/*.whl

# The core suite on Colab's versions, the oldest and the newest; ARGS=colab: on those alone.
compat: .venv/test
	$(BIN)/python tests/compatibility/environments.py $(ARGS)

# The screenshots in docs/, taken by the browser tests.
picture: .venv/test
	GPTJ_LAB_PICTURE=1 $(BIN)/python -m pytest tests/browser -k 'stream or slices or pictures'

what-is-read: .venv/test
	$(BIN)/python tests/reading_shapes.py docs/what_is_read.md

# In a virtual environment of its own: where libtpu is installed, JAX looks for a TPU at each start.
plan-table: .venv-tpu/ready
	.venv-tpu/bin/python -m gptj_lab.mesh.planner_table docs/plan_table.md

.venv-tpu/ready: pyproject.toml | .venv/bin/python
	$(BIN)/python -m venv .venv-tpu
	.venv-tpu/bin/pip install -q -e '.[tpu]'
	touch $@

# The stamps lie inside .venv, so that deleting it starts afresh; each depends on the versions.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "gptj_lab needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
	    "name another with PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e .
	touch $@

.venv/lab: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e '.[lab]'
	touch $@ .venv/base

.venv/test: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e '.[test]'
	touch $@ .venv/lab .venv/base

# torch first, by its exact version. On Linux PyPI's builds bring gigabytes of CUDA, TORCH_INDEX
# names one that doesn't; TORCH=none takes torch and what needs it out.
.venv/torch-$(TORCH): pyproject.toml | .venv/bin/python
ifneq ($(TORCH),none)
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH)
	$(BIN)/pip install -q -e '.[test,compared]'
else
	$(BIN)/pip uninstall -q -y torch peft
	$(BIN)/pip install -q -e '.[test]'
endif
	rm -f .venv/torch-*
	touch $@ .venv/test .venv/lab .venv/base
