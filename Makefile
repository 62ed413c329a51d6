# minifork: every target makes its environment first, those that train their base model too, and none does anything twice.
# PYTHON=python3 uses that interpreter as it is and installs nothing. Variables are read from the command line only: the
# environment may have a NAME for reasons of its own.

TASK      := star
BASE_SEED := 0
SEED      := 0
# empty: as the config has it
FORK_RATE :=
EPOCHS    :=
NAME      :=
PAIRS     := 1
PRESET    :=
STUDY     :=
ENGINE    := auto
ROLLOUTS  := 1024
ARGS      :=

KNOWN := TASK BASE_SEED SEED FORK_RATE EPOCHS NAME PAIRS PRESET STUDY ENGINE ROLLOUTS ARGS PYTHON
GIVEN := $(strip $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name))))
NEAREST = import difflib, sys; name, *known = sys.argv[1:]; print(*difflib.get_close_matches(name.upper(), known, 1, 0))
WRONG := $(firstword $(filter-out $(KNOWN),$(GIVEN)))
ifneq ($(WRONG),)
$(error unknown variable $(WRONG), did you mean $(shell python3 -c '$(NEAREST)' $(WRONG) $(KNOWN))? There are $(KNOWN))
endif

ifneq ($(strip $(PYTHON)),)
ENV :=
BENCH :=
else
override PYTHON := .venv/bin/python
ENV := .venv/ready
BENCH := .venv/bench
endif

CONFIG   := --config $(TASK) $(if $(PRESET),preset=$(PRESET))
MINIFORK := $(PYTHON) -m experiments
BASE     := $(MINIFORK) pretrain --resume $(CONFIG) base_seed=$(BASE_SEED) $(ARGS)
SEEDS    := base_seed=$(BASE_SEED) seed=$(SEED)
STUDIED  := $(CONFIG) reproduce.pairs=$(PAIRS) $(if $(STUDY),reproduce.study=$(STUDY))
SFT      := $(if $(FORK_RATE),sft.fork_rate=$(FORK_RATE)) $(if $(EPOCHS),sft.epochs=$(EPOCHS))

.DEFAULT_GOAL := help
.PHONY: help demo pretrain sft rl wise eval runs config figures claims report audit agreement bench gpu-check study frontier contrast sensitivity reproduce reproduce-full stops test test-all coverage faults lint clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(ENV) ## the effect in two minutes: trains a small model, prints the table, draws the crossing [ARGS]
	@$(MINIFORK) demo $(ARGS)

pretrain: $(ENV) ## train the base model on random graph walks [TASK PRESET BASE_SEED NAME ARGS]
	@$(BASE) name="$(NAME)"

sft: $(ENV) ## fine-tune it on traces, FORK_RATE of them through the fork [TASK PRESET FORK_RATE SEED BASE_SEED EPOCHS NAME ARGS]
	@$(BASE) $(SFT) name=""
	@$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) $(SFT) name="$(NAME)" $(ARGS)

rl: $(ENV) ## go on by rewards from the fine-tuned run [TASK PRESET FORK_RATE SEED BASE_SEED EPOCHS NAME ARGS]
	@$(BASE) $(SFT) name=""
	@$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) $(SFT) $(ARGS) name=""
	@$(MINIFORK) rl --resume $(CONFIG) $(SEEDS) $(SFT) name="$(NAME)" $(ARGS)

wise: $(ENV) ## interpolate the fine-tuned weights with the base's [TASK PRESET FORK_RATE SEED BASE_SEED EPOCHS NAME ARGS]
	@$(BASE) $(SFT) name=""
	@$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) $(SFT) $(ARGS) name=""
	@$(MINIFORK) wise $(CONFIG) $(SEEDS) $(SFT) name="$(NAME)" $(ARGS)

eval: $(ENV) ## exact pass@k of every run, checked by another engine [TASK PRESET ENGINE ROLLOUTS ARGS]
	@$(MINIFORK) eval $(CONFIG) eval.engine=$(ENGINE) eval.rollouts=$(ROLLOUTS) $(ARGS)

runs: $(ENV) ## list the runs [TASK PRESET ARGS="fork_rate=1 stage=sft --remove"]
	@$(MINIFORK) runs $(CONFIG) $(ARGS)

config: $(ENV) ## print every key, its value and what differs from what ships [TASK PRESET ARGS]
	@$(MINIFORK) config $(CONFIG) $(ARGS)

figures: $(ENV) ## draw the figures of what was measured [TASK PRESET ARGS]
	@$(MINIFORK) figures $(CONFIG) $(ARGS)

claims: $(ENV) ## say which claims hold [TASK PRESET ARGS]
	@$(MINIFORK) claims $(CONFIG) $(ARGS)

report: $(ENV) ## write one HTML file: claims, figures, an explorer [TASK PRESET ARGS]
	@$(MINIFORK) report $(CONFIG) $(ARGS)

audit: $(ENV) ## look for surface features that give the right branch away [TASK PRESET FORK_RATE SEED ARGS]
	@$(MINIFORK) audit $(CONFIG) seed=$(SEED) $(SFT) $(ARGS)

agreement: $(ENV) ## test exact, split and rollout against each other on four models [TASK PRESET BASE_SEED SEED ARGS]
	@$(BASE) name=""
	@for rate in 0 0.5 1; do \
		$(MINIFORK) sft --resume $(CONFIG) $(SEEDS) sft.fork_rate=$$rate $(ARGS) || exit 1; \
	done
	@$(MINIFORK) agreement $(CONFIG) $(SEEDS) $(ARGS)

bench: $(ENV) $(BENCH) ## time the engines beside common ways to sample [TASK PRESET BASE_SEED ARGS]
	@$(BASE) name=""
	@$(MINIFORK) bench $(CONFIG) base_seed=$(BASE_SEED) $(ARGS)

gpu-check: $(ENV) ## check and time everything that needs a GPU [PYTHON=python3 ARGS]
	@$(MINIFORK) gpu-check $(CONFIG) $(ARGS)

study: $(ENV) ## run and evaluate a study [STUDY=stops TASK PRESET PAIRS ARGS]
	@$(MINIFORK) study $(STUDIED) $(ARGS)

frontier: $(ENV) ## run every mitigation and compare them with early stopping [TASK PRESET PAIRS ARGS]
	@$(MINIFORK) frontier $(STUDIED) $(ARGS)

contrast: $(ENV) ## run RL on forward and on reverse traces and compare them [TASK PRESET PAIRS ARGS]
	@$(MINIFORK) contrast $(STUDIED) $(ARGS)

sensitivity: $(ENV) ## map the loss over epochs, traces, learning rate, width and branches [TASK PRESET PAIRS ARGS]
	@$(MINIFORK) sensitivity $(STUDIED) $(ARGS)

reproduce: $(ENV) ## everything: base, all fine-tunings, eval, figures, claims [TASK PRESET PAIRS ARGS]
	@$(MINIFORK) reproduce $(STUDIED) $(ARGS)

reproduce-full: $(ENV) ## star and arith on 5 pairs of seeds, RL, claims, the report; resumes where it stopped
	@$(MINIFORK) reproduce --config arith reproduce.pairs=5 $(ARGS)
	@$(MINIFORK) reproduce --config star reproduce.pairs=5 $(ARGS)
	@$(MINIFORK) contrast --config star reproduce.pairs=5 $(ARGS)
	@$(MINIFORK) claims --config star $(ARGS)
	@$(MINIFORK) report --config star $(ARGS)

stops: $(ENV) ## bases with other stop probabilities, which set the base's pass@1 [TASK PRESET PAIRS ARGS]
	@$(MINIFORK) study $(STUDIED) reproduce.study=stops $(ARGS)

test: $(ENV) ## run the tests
	@$(PYTHON) -m pytest -n auto --dist loadfile

test-all: $(ENV) ## run the slow tests too, among them the examples at full size (some minutes more)
	@$(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder --slow

coverage: $(ENV) ## run the tests and report the lines of data_gen and minifork that they reach
	@rm -f .coverage*
	@$(PYTHON) -m coverage run -m pytest -n auto --dist loadfile
	@$(PYTHON) -m coverage combine --quiet
	@$(PYTHON) -m coverage report

faults: $(ENV) ## stop every stage many times, by four signals, and compare with undisturbed runs (5 to 10 minutes)
	@$(PYTHON) -m tests.faults

lint: $(ENV) ## check style
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

.venv/bench: .venv/ready
	@echo "Installing what only the benchmark needs (once) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check transformers
	@touch $@
