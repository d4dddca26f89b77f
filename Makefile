PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
SEED ?= 0
WORKERS ?= 2
ABLATIONS := methods stress frozen_encoder released_encoder
# What the README and the repository keep of a report.
PARTS := seeds.md differences.md correlations.md runs.csv curves.png quality.png stress.png
STAMP := $(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: help quickstart ablation celeba64 vqgan-celeba64 bench test test-slow lint type format clean

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

SWEEP = $(BIN)/nsvq sweep run experiments/sweeps/$(1).yaml -n $(WORKERS)

ablation: .venv/runtime ## the README's ablations with their tables and figures, a night on 2 CPU cores; goes on where it stopped
	$(call SWEEP,methods)
	$(call SWEEP,stress)
	$(call SWEEP,frozen_encoder)
	OMP_NUM_THREADS=1 $(BIN)/nsvq fit --config experiments/quickstart.yaml --config experiments/methods/vanilla_replacement.yaml \
		--experiment autoencoder --version trained --ckpt_path last
	$(call SWEEP,released_encoder)
	$(MAKE) -j1 $(ABLATIONS:%=results-%)

# A sweep's tables and figures, and its table over seeds between its marks in the README.
results-%: .venv/runtime
	$(BIN)/nsvq report runs/$* -o runs/$*/report.html --parts runs/$*/parts
	mkdir -p experiments/results/$*
	cd runs/$*/parts && cp $$(ls $(PARTS) 2>/dev/null) "$(CURDIR)/experiments/results/$*"
	test -f experiments/results/$*/seeds.md
	sed -e '/^<!-- $* -->/,/^<!-- end -->/{//!d;}' -e '/^<!-- $* -->/r experiments/results/$*/seeds.md' README.md > runs/README.md
	mv runs/README.md README.md

celeba64: .venv/runtime ## every method on a folder of CelebA faces, three seeds: make celeba64 FACES=folder
	@test -d "$(FACES)" || { echo "make celeba64 FACES=folder: a folder of aligned CelebA images, got '$(FACES)'"; exit 2; }
	@test -L data/celeba -o ! -e data/celeba || { echo "data/celeba is there and no link: move it away"; exit 2; }
	mkdir -p data && ln -sfn "$$(cd "$(FACES)" && pwd)" data/celeba
	$(call SWEEP,faces)
	$(BIN)/nsvq report runs/faces -o runs/faces/report.html

# Each run is a target, so that `make -j2 vqgan-celeba64 FACES=…` runs two at a time.
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
