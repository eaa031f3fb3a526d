# Everything from a bare Python (3.10 - 3.13) and a C++ compiler. The first run of a target sets up
# .venv; later runs reinstall only what changed.
#   make sample | test | lint | bench | baseline | cuda-build | model | clean
#   make quality | methods | solvers | toys | ddim-table | grids   (figures and pictures of the docs)
#   make methods-FAMILY                       (one of the FAMILIES below)
#   make attack                     (all hostile inputs, half an hour; docs/reliability.md)
#   make gpu                        (all that a GPU can show, in nine minutes; needs nvcc)
#   make classifier | clip | judges    (what classifier and CLIP guidance are led by; how good it is)
# TORCH chooses the torch to install, PYTHON the interpreter:
#   make test TORCH=torch==2.12.0 PYTHON=python3.12
# ARGS goes to the quality benchmark:
#   make quality ARGS='--dtype bf16 --scales 1,1.5,2,3,5 --pair-samples 200'

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= /usr/share/datasets/fashion-mnist
CLASSES := T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot
COMPILED := $(shell find csrc -name '*.*') setup.py pyproject.toml

FAMILIES := $(addprefix methods-,perturbation autoguidance icg tsg sims every gradients reg)
ONE_HEAD := --irrelevant 0 --negative 0 --no-split --compile --dtype fp16

.PHONY: sample test lint bench baseline quality solvers toys ddim-table methods grids \
  cuda-build gpu attack model classifier clip judges clean $(FAMILIES)

sample: $(VENV)/installed
	$(BIN)/fastguide sample fashion --out samples.png

test: $(VENV)/installed
	$(BIN)/pytest -q

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/pytest -q bench

# renews bench/baseline.json, which `make bench` compares with
baseline: $(VENV)/installed
	$(BIN)/pytest -q bench --renew-baseline

quality: $(VENV)/installed
	$(BIN)/python bench/quality.py --data $(DATA) $(ARGS)

# every solver on a mixture whose scores are known
solvers: $(VENV)/installed
	$(BIN)/python bench/solvers.py

# CFG and REG against exact guidance, and autoguidance on the fractal of its paper
toys: $(VENV)/installed
	$(BIN)/python bench/toys.py
	$(BIN)/python bench/fractal.py

# table 1 of DDIM, with a model that is trained for it
ddim-table: $(VENV)/installed out/eps/model.json
	$(BIN)/python bench/ddim_table.py out/eps --data $(DATA)

# every guidance method over its weight, judged by a classifier; `make methods-icg` is one family
methods: $(FAMILIES)
methods-autoguidance: out/small/model.json
methods-icg: out/nodrop/model.json
methods-tsg: out/eps/model.json
methods-sims: out/sims/model.json
methods-gradients: out/noisy-classifier/model.json out/clip/model.json
$(FAMILIES): methods-%: $(VENV)/installed
	$(BIN)/python bench/methods.py $* --data $(DATA)

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

# the pictures of docs/methods
grids: $(VENV)/installed
	$(BIN)/python bench/grids.py

# without .venv it runs under PYTHON and installs nothing but this package: `python bench/gpu.py`
gpu:
	$(if $(wildcard $(VENV)/installed),$(BIN)/python,$(PYTHON)) bench/gpu.py $(ARGS)

attack: $(VENV)/installed
	$(BIN)/python tests/attack/run.py $(ARGS)

cuda-build:
	PYTHON=$(PYTHON) bash scripts/cuda_build.sh

# trains the bundled model again (Debian: apt-get install dataset-fashion-mnist)
model: $(VENV)/installed
	$(BIN)/fastguide train $(DATA) out/fashion --names '$(CLASSES)' --width 240 --attention-heads 4 \
	  --negative 0.15 --steps 6000 --snapshot 750 --compile --dtype fp16
	mkdir -p bench/models/fashion-weak
	cp out/fashion/model.* fastguide/assets/fashion/
	cp out/fashion/snapshot-750/model.* bench/models/fashion-weak/

# a classifier of noisy images, for fg.ClassifierGuidance, and encoders for fg.CLIPGuidance
classifier: out/noisy-classifier/model.json
clip: out/clip/model.json

out/noisy-classifier/model.json: | $(VENV)/installed
	$(BIN)/fastguide classifier $(DATA) out/noisy-classifier --like fashion --steps 1200 \
	  --save-every 200 --compile --dtype fp16

out/clip/model.json: | $(VENV)/installed
	$(BIN)/fastguide clip $(DATA) out/clip --like fashion --steps 400 \
	  --save-every 200 --compile --dtype fp16

# their accuracy at each noise level
judges: classifier clip
	$(BIN)/python bench/judges.py out/noisy-classifier out/clip --data $(DATA)

$(VENV)/installed: $(VENV)/tools $(COMPILED)
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[test,bench]'
	touch $@

# the tools that the build needs, and the chosen torch before anything that depends on one
$(VENV)/tools: $(VENV)/torch
	$(BIN)/pip install --quiet 'setuptools>=77' wheel ninja pybind11
	touch $@

# the file holds the choice, so that another TORCH or PYTHON installs anew
$(VENV)/torch: FORCE
	@if [ "$$(cat $@ 2>/dev/null)" != "$(TORCH) $(PYTHON)" ]; then \
	  set -e; $(PYTHON) -m venv --clear $(VENV); \
	  echo "installing $(TORCH) into $(VENV)"; \
	  $(BIN)/pip install --quiet '$(TORCH)' numpy; \
	  echo "$(TORCH) $(PYTHON)" > $@; \
	fi

FORCE:

clean:
	rm -rf $(VENV) .venv-cuda build out *.egg-info fastguide/*.so
