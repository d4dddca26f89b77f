PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
SEED ?= 0
STAMP := $(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: help quickstart celeba64 vqgan-celeba64 bench test test-slow lint type format clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "nsvq needs Python 3.10 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/runtime
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	@touch $@

.venv/bench: .venv/runtime
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

QUICK := $(RUNS)/quickstart-$(STAMP)
QUICK_FIT = OMP_NUM_THREADS=1 $(BIN)/nsvq fit --config experiments/quickstart.yaml --runs_dir $(RUNS) --experiment quickstart-$(STAMP) \
	--seed_everything $(SEED) --version

quickstart: .venv/runtime ## train vanilla VQ, replacement, NSVQ and TransVQ on two photographs and compare them
	$(QUICK_FIT) vanilla-lr1 --model.codebook_lr_factor 1
	$(QUICK_FIT) vanilla
	$(QUICK_FIT) replacement --trainer.callbacks+=DeadCodeReplacement
	$(QUICK_FIT) nsvq --model.quantizer experiments/quantizers/nsvq.yaml
	$(QUICK_FIT) transvq --model.quantizer experiments/quantizers/transvq.yaml
	$(BIN)/nsvq compare $(addprefix $(QUICK)/,vanilla-lr1 vanilla replacement nsvq transvq) --output $(QUICK)

# Each run is a target, so that `make -j2 celeba64 FACES=…` runs two at a time.
FACE_RUNS := nsvq nsvq-constant transvq vanilla replacement ema simvq factorized nsvq-published transvq-published vanilla-lr1
FACE_FIT = OMP_NUM_THREADS=1 $(BIN)/nsvq fit --config experiments/celeba64.yaml --data.root "$(FACES)" --runs_dir $(RUNS) \
	--experiment celeba64-seed$(SEED) --seed_everything $(SEED) --trainer.enable_progress_bar false --version

celeba64: $(FACE_RUNS:%=face-%) ## train every quantizer on a folder of CelebA faces: make -j2 celeba64 FACES=folder
	$(BIN)/nsvq compare $(RUNS)/celeba64-seed$(SEED) --output $(RUNS)/celeba64-seed$(SEED)

face-%: OPTIONS = --model.quantizer experiments/quantizers/$(subst -,_,$*).yaml
face-nsvq-constant: OPTIONS = --model.quantizer experiments/quantizers/nsvq.yaml --model.quantizer.bandwidth.kind constant
face-replacement: OPTIONS = --trainer.callbacks+=DeadCodeReplacement
face-nsvq-published: OPTIONS = --model.quantizer experiments/quantizers/nsvq_published.yaml --model.codebook_lr_factor 1
face-vanilla-lr1: OPTIONS = --model.codebook_lr_factor 1
face-%: .venv/runtime
	$(FACE_FIT) $* $(OPTIONS)

GAN_RUNS := vanilla nsvq transvq replacement nsvq-no-gan vanilla-no-gan
GAN_FIT = OMP_NUM_THREADS=1 $(BIN)/nsvq fit --config experiments/vqgan_celeba64.yaml --data.root "$(FACES)" --runs_dir $(RUNS) \
	--experiment vqgan-celeba64-seed$(SEED) --seed_everything $(SEED) --trainer.enable_progress_bar false --version
GAN_FOLDER := $(RUNS)/vqgan-celeba64-seed$(SEED)

vqgan-celeba64: $(GAN_RUNS:%=gan-%) ## train VQ-GANs on a folder of CelebA faces: make -j2 vqgan-celeba64 FACES=folder
	$(BIN)/nsvq compare $(GAN_FOLDER) --output $(GAN_FOLDER)

gan-%: OPTIONS = --model.quantizer experiments/quantizers/$(firstword $(subst -, ,$*)).yaml
gan-replacement: OPTIONS = --trainer.callbacks+=DeadCodeReplacement
gan-vanilla-no-gan gan-nsvq-no-gan: OPTIONS += --model.adversarial.weight 0
gan-%: .venv/runtime
	$(GAN_FIT) $* $(OPTIONS)

bench: .venv/bench ## time and memory of the quantizers beside their peers; BENCH=full: the whole grid, for hours
	$(BIN)/python -m nsvq.bench $(if $(filter full,$(BENCH)),--full) --output $(RUNS)/bench

test: lint type .venv/dev ## check style and types, run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: .venv/dev ## run the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

lint: .venv/dev ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: .venv/dev ## check types
	$(BIN)/mypy

format: .venv/dev ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches, not the runs
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
