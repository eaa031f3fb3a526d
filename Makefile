# Everything from a bare Python (3.10 - 3.13) and a C++ compiler. The first run of a target sets up
# .venv; later runs reinstall only what changed. `make help` lists the targets: a line of it is what
# stands after ## beside a target, a headline what stands after ##@.
# TORCH chooses the torch to install, PYTHON the interpreter:
#   make test TORCH=torch==2.12.0 PYTHON=python3.12

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# what is imported is compiled then: a fraction of all that there is
PIP := $(BIN)/pip install --quiet --no-compile
DATA ?= /usr/share/datasets/fashion-mnist
CLASSES := T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot
BASE ?= auto
ROWS ?=
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
COMPILED := $(shell find csrc -name '*.*') setup.py pyproject.toml

FAMILIES := $(addprefix methods-,perturbation autoguidance icg tsg sims every gradients reg)
ONE_HEAD := --irrelevant 0 --negative 0 --no-split --compile --dtype fp16

.PHONY: sample test test-full coverage lint bench baseline bench-serving soak-serving quality \
  solvers inpainting toys reg-modes ddim-table methods grids judges cuda-build wheels wheel-test gpu \
  attack clang model classifier clip help clean $(FAMILIES)

##@ Daily
sample: $(VENV)/installed ## draw samples of the bundled model into samples.png
	$(BIN)/fastguide sample fashion --seeds 0-59 --out samples.png

# a process for each core and one thread in each: no test is large enough for two
JOBS ?= $(shell nproc)

test: $(VENV)/installed ## all tests, JOBS at once; ARGS for pytest
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal $(ARGS)

test-full: $(VENV)/installed ## every value of a test's arguments with every other, twice the time
	$(MAKE) test ARGS='--full $(ARGS)'

coverage: $(VENV)/installed ## lines and branches that the tests run
	$(MAKE) test ARGS='--cov=fastguide --cov-branch $(ARGS)'

attack: $(VENV)/installed ## all hostile inputs, half an hour; docs/reliability.md
	PYTHON=$(BIN)/python bash scripts/other_build.sh sanitized
	$(BIN)/python tests/attack/run.py $(ARGS)

OPS := step gram blur group_norm noise self_attention identity_attention attention_colsum

clang: $(VENV)/installed ## the tests of the CPU ops on a build by clang, which needs libomp-dev too
	PYTHON=$(BIN)/python bash scripts/other_build.sh clang
	OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/built.py build/clang/_C.so clang -q \
	  -k 'not opcheck and not compile' $(OPS:%=tests/ops/test_%.py)

lint: $(VENV)/installed ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

##@ Time (bench/timing): BASE=REVISION, ROWS=step
# a row fails where it is slower than at BASE, built beside the tree under build/base; by default that
# is where the branch left the default one, else the last tag, else HEAD~1; `none` for no base
bench: $(VENV)/installed ## each row against BASE, in turns, and against its limit beside its twin
	$(BIN)/pytest -q bench/timing --base '$(BASE)' -k '$(ROWS)'

baseline: $(VENV)/installed ## the same; this processor's figures into bench/baseline.json
	$(BIN)/pytest -q bench/timing --base '$(BASE)' --keep

bench-serving: $(VENV)/installed ## a server under open-loop load, beside whole requests in batches; ARGS
	$(BIN)/python bench/serving/load.py $(ARGS)

soak-serving: $(VENV)/installed ## 2,000 mixed requests, each held to the request alone; ARGS
	$(BIN)/python bench/serving/soak.py $(ARGS)

##@ Quality (bench/quality): figures and pictures of the docs
# ARGS goes to it: make quality ARGS='--dtype bf16 --scales 1,1.5,2,3,5 --pair-samples 200'
quality: $(VENV)/installed ## are samples of one pass as good as those of two? ARGS for its options
	$(BIN)/python bench/quality/single_pass.py --data $(DATA) $(ARGS)

solvers: $(VENV)/installed ## every solver on a mixture whose scores are known
	$(BIN)/python bench/quality/solvers.py

toys: $(VENV)/installed ## CFG and REG against exact guidance; autoguidance's fractal
	$(BIN)/python bench/quality/toys.py
	$(BIN)/python bench/quality/fractal.py

inpainting: $(VENV)/installed ## moments of what is sampled beside known pixels
	$(BIN)/python bench/quality/inpainting.py

reg-modes: $(VENV)/installed ## how far the modes of REG are from each other
	$(BIN)/python bench/quality/reg_modes.py

ddim-table: $(VENV)/installed out/eps/model.json ## table 1 of DDIM, with a model trained for it
	$(BIN)/python bench/quality/ddim_table.py out/eps --data $(DATA)

# `make methods-icg` is one family
methods: $(FAMILIES) ## every guidance method over its weight; methods-FAMILY is one family
methods-autoguidance: out/small/model.json
methods-icg: out/nodrop/model.json
methods-tsg: out/eps/model.json
methods-sims: out/sims/model.json
methods-gradients: out/noisy-classifier/model.json out/clip/model.json
$(FAMILIES): methods-%: $(VENV)/installed
	$(BIN)/python bench/quality/methods.py $* --data $(DATA)

grids: $(VENV)/installed ## the pictures of docs/methods
	$(BIN)/python bench/quality/grids.py

judges: classifier clip ## accuracy of what classifier and CLIP guidance are led by
	$(BIN)/python bench/quality/judges.py out/noisy-classifier out/clip --data $(DATA)

##@ GPU (bench/gpu)
# without .venv it runs under PYTHON and installs nothing but this package: `python bench/gpu/gpu.py`
gpu: ## all that a GPU can show, in nine minutes; needs nvcc
	$(if $(wildcard $(VENV)/installed),$(BIN)/python,$(PYTHON)) bench/gpu/gpu.py $(ARGS)

cuda-build: ## build, link and import the whole CUDA extension; needs nvcc, no GPU
	PYTHON=$(PYTHON) bash scripts/cuda_build.sh

##@ Release
wheels: $(VENV)/installed ## dist/: an sdist, and a wheel for CPython 3.10 on and this torch
	PYTHON=$(BIN)/python bash scripts/wheels.sh

wheel-test: ## the wheel in empty environments of PYTHONS
	TORCH='$(TORCH)' bash scripts/wheel_test.sh $(PYTHONS)

##@ Models
# Debian: apt-get install dataset-fashion-mnist
model: $(VENV)/installed ## train the bundled model again
	$(BIN)/fastguide train $(DATA) out/fashion --names '$(CLASSES)' --width 240 --attention-heads 4 \
	  --negative 0.15 --steps 6000 --snapshot 750 --compile --dtype fp16
	mkdir -p bench/models/fashion-weak
	cp out/fashion/model.* fastguide/assets/fashion/
	cp out/fashion/snapshot-750/model.* bench/models/fashion-weak/

classifier: out/noisy-classifier/model.json ## train a classifier of noisy images
clip: out/clip/model.json ## train encoders of images and class names

out/noisy-classifier/model.json: | $(VENV)/installed
	$(BIN)/fastguide classifier $(DATA) out/noisy-classifier --like fashion --steps 1200 \
	  --save-every 200 --compile --dtype fp16

out/clip/model.json: | $(VENV)/installed
	$(BIN)/fastguide clip $(DATA) out/clip --like fashion --steps 400 \
	  --save-every 200 --compile --dtype fp16

# models that are trained for a study, once: the order-only prerequisite trains none anew
out/eps/model.json: | $(VENV)/installed
	$(BIN)/fastguide train $(DATA) out/eps --prediction eps --betas linear --unconditional \
	  --width 160 --attention-heads 5 --steps 4500 --compile

# a weaker one
out/small/model.json: | $(VENV)/installed
	$(BIN)/fastguide train $(DATA) out/small --names '$(CLASSES)' --width 96 --attention-heads 4 \
	  --depth 3 --steps 1500 $(ONE_HEAD)

# one that never sees the null condition
out/nodrop/model.json: | $(VENV)/installed
	$(BIN)/fastguide train $(DATA) out/nodrop --names '$(CLASSES)' --width 160 --attention-heads 5 \
	  --depth 6 --dropout 0 --steps 3000 $(ONE_HEAD)

# the bundled one, tuned on its own samples
out/sims/model.json: | $(VENV)/installed
	$(BIN)/fastguide sims fashion out/sims --samples 6000 --steps 400 --compile --dtype fp16

$(VENV)/installed: $(VENV)/tools $(COMPILED)
	rm -f fastguide/_C.*.so
	$(PIP) --no-build-isolation --editable '.[test,bench]'
	touch $@

# the tools that the build needs, and the chosen torch before anything that depends on one
$(VENV)/tools: $(VENV)/torch
	$(PIP) 'setuptools>=77' wheel ninja
	touch $@

# the file holds the choice, so that another TORCH or PYTHON installs anew
$(VENV)/torch: FORCE
	@if [ "$$(cat $@ 2>/dev/null)" != "$(TORCH) $(PYTHON)" ]; then \
	  set -e; $(PYTHON) -m venv --clear $(VENV); \
	  echo "installing $(TORCH) into $(VENV)"; \
	  $(PIP) '$(TORCH)' numpy; \
	  echo "$(TORCH) $(PYTHON)" > $@; \
	fi

FORCE:

##@ Here
help: ## this list
	@awk -F ':.*## ' '/^##@ /{print "\n" substr($$0, 5)} /^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' \
	  $(firstword $(MAKEFILE_LIST))
	@echo; echo "  methods-FAMILY: $(FAMILIES:methods-%=%)"

clean: ## remove the environment and all that was built
	rm -rf $(VENV) .venv-cuda build dist out *.egg-info fastguide/*.so
