# Needs Python (>= 3.10) with pip and venv, and nothing else:
#   make demo          train both examples with and without tfaccel
#   make test          the tests, but for those that are slow for what they show
#   make test-all      all tests, the slow ones included
#   make test-kernels  those that meet TensorFlow's kernels, with oneDNN on where
#                      TensorFlow leaves it off on this machine, and off where it is on
#   make test-opencl   those of the OpenCL kernels, on the CPU by PoCL where there is no GPU
#   make check         ruff and mypy
#   make conformance   Keras's own tests, with tfaccel in every fit
#   make test-oldest   the tests on the oldest TensorFlow and Keras
#   make priors        what is expected of plans, out of benchmarks/results
#   make docs          the site, into site/; warnings are errors
#   make clean         remove whatever the above made
#
# make test ARGS="-m slow"   passes arguments on to pytest (test, test-all, test-kernels,
#                            test-opencl, test-oldest) or to the runner (conformance)

PYTHON ?= python3
# TensorFlow of that age has no wheels for the newest Pythons (see constraints-oldest.txt).
OLDEST_PYTHON ?= $(PYTHON)
# What to install as PyTorch for `make conformance`: see conformance/README.md.
TORCH ?= torch
ARGS ?=

# TensorFlow's start-up notes on standard error; errors still show.
TF_CPP_MIN_LOG_LEVEL ?= 2
export TF_CPP_MIN_LOG_LEVEL
# Else each process of the tests compiles all modules, and those that they start do, too.
unexport PYTHONDONTWRITEBYTECODE

# Most of a test is tracing, which Python does on one core. One process more than two cores, as
# tests that start processes of their own wait for them.
PARALLEL = --numprocesses 3 --dist worksteal
# What meets TensorFlow's kernels, of which a build for x86 has two sets: Eigen's and oneDNN's.
# Which steps share a call, what an optimizer computes element by element and what is computed
# twice are the same by both.
KERNEL_TESTS = tests/test_attention.py tests/test_empty_batch.py tests/test_kernels*.py \
	tests/test_multi_worker.py tests/test_onednn.py tests/profiling/test_op_*.py tests/test_ops.py \
	tests/test_profiler.py tests/test_strategy*.py tests/passes --ignore tests/passes/recompute \
	--ignore tests/passes/step_batching --ignore tests/passes/fused_optimizer
TWO_KERNEL_TESTS = -k "bfloat16 or float16 or biases or without_data or uneven"
# Which tests, where it is not for ARGS to say.
MARKED =
# Two logical CPUs can only be had at the start of a process. 5: ARGS chose none of these tests.
# Seen once in five runs: a segmentation fault while Keras lets go of a distributed iterator. What
# failed is run once more, so that a crash is told apart from a fault.
ON_TWO = env TFACCEL_TWO_DEVICES=1 $(1)/bin/python -m pytest $(MARKED) $(2) $(ARGS) tests/two_devices
TWO_DEVICES = $(ON_TWO) || [ $$? -eq 5 ] || $(ON_TWO) --last-failed
# Both together, as neither keeps two cores busy: what the smaller part says is shown when it ends.
# $(1): the environment. $(2): which tests on two logical CPUs. $(3): which of the others.
TESTS = said=$$(mktemp); \
	{ { $(call TWO_DEVICES,$(1),$(2)); } >"$$said" 2>&1; ended=$$?; cat "$$said"; exit $$ended; } & \
	two=$$!; trap 'rm -f "$$said"' EXIT; trap 'rm -f "$$said"; trap - TERM; kill 0' INT TERM; \
	$(1)/bin/python -m pytest $(PARALLEL) $(MARKED) $(3) $(ARGS); others=$$?; \
	wait $$two && exit $$others
# Prints how to ask for the set that TensorFlow does not take on this machine.
OTHER_KERNELS = from tfaccel.compat.tensorflow_private import onednn_is_on; \
	print("TF_ENABLE_ONEDNN_OPTS=%d" % (not onednn_is_on()))
# Errors alone: pip warns of every place that another index names.
PIP_INSTALL = -m pip install --quiet --quiet --disable-pip-version-check
# A Python environment is always our own: a user's Python is never touched.
VENV = .venv
VENV_OLDEST = .venv-oldest
VENV_CONFORMANCE = .venv-conformance
METADATA = pyproject.toml setup.cfg

.DELETE_ON_ERROR:
.PHONY: demo test test-all test-kernels test-opencl check conformance test-oldest priors docs clean

demo: $(VENV)/.demo
	@$(VENV)/bin/python examples/demo.py

test test-all: $(VENV)/.test
	@$(call TESTS,$(VENV))

test-all: MARKED = -m "not gpu"

test-kernels: $(VENV)/.test
	@setting="$$($(VENV)/bin/python -c '$(OTHER_KERNELS)')" || exit; \
		echo "$$setting"; \
		export "$$setting"; $(call TESTS,$(VENV),$(TWO_KERNEL_TESTS),$(KERNEL_TESTS))

# PoCL's package brings an OpenCL platform for the CPU, which pyopencl finds by itself.
test-opencl: $(VENV)/.test
	@$(VENV)/bin/python $(PIP_INSTALL) --editable ".[cpu,test,opencl]" pocl-binary-distribution
	@$(VENV)/bin/python -m pytest -m "" tests/opencl tests/test_opencl.py $(ARGS)
	@$(VENV)/bin/python -m pytest tests/test_kernels.py -k opencl $(ARGS)

check: $(VENV)/.check
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/python -m mypy
	@$(VENV)/bin/lint-imports --no-logo

conformance: $(VENV_CONFORMANCE)/.conformance
	@$(VENV_CONFORMANCE)/bin/python conformance/run.py $(ARGS)

test-oldest: $(VENV_OLDEST)/.test
	@$(call TESTS,$(VENV_OLDEST))

priors: $(VENV)/.test
	@$(VENV)/bin/python benchmarks/priors.py

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet $(ARGS)
	@echo "The site begins at site/index.html"

clean:
	rm -rf $(VENV) $(VENV_OLDEST) $(VENV_CONFORMANCE) site build dist *.egg-info
	rm -f demo.png digits.png spoken_digits.png texts.png quickstart.png discs.png
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says that its extras are installed; pip runs again only when the
# metadata is newer. The environment itself is an order-only prerequisite, as its
# directory changes with every install.

$(VENV)/.demo: EXTRAS = cpu,examples,report
$(VENV)/.test: EXTRAS = cpu,test
$(VENV)/.check: EXTRAS = dev
$(VENV)/.docs: EXTRAS = docs

$(VENV)/.demo $(VENV)/.test $(VENV)/.check $(VENV)/.docs: $(METADATA) | $(VENV)/bin/python
	@echo "Installing tfaccel[$(EXTRAS)] into $(VENV) (the first time takes minutes)"
	@$(VENV)/bin/python $(PIP_INSTALL) --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV_OLDEST)/.test: $(METADATA) constraints-oldest.txt | $(VENV_OLDEST)/bin/python
	@echo "Installing tfaccel[cpu,test] into $(VENV_OLDEST), as in constraints-oldest.txt"
	@$(VENV_OLDEST)/bin/python $(PIP_INSTALL) --editable ".[cpu,test]" --constraint constraints-oldest.txt
	@touch $@

$(VENV_CONFORMANCE)/.conformance: $(METADATA) | $(VENV_CONFORMANCE)/bin/python
	@echo "Installing tfaccel[cpu,conformance] into $(VENV_CONFORMANCE) (the first time takes minutes)"
	@$(VENV_CONFORMANCE)/bin/python $(PIP_INSTALL) $(TORCH)
	@$(VENV_CONFORMANCE)/bin/python $(PIP_INSTALL) --editable ".[cpu,conformance]"
	@touch $@

$(VENV)/bin/python $(VENV_CONFORMANCE)/bin/python:
	@$(PYTHON) -m venv $(@D)/..

$(VENV_OLDEST)/bin/python:
	@$(OLDEST_PYTHON) -m venv $(@D)/..
