# Everything runs in .venv, built once and again whenever pyproject.toml changes.
# On a machine with only Python >= 3.10 and make: `make demo`, `make test`.

PYTHON ?= python3
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := train,vision,coco,play,dev,docs
PYTHONS ?= python3.10 python3.11 python3.12 python3.13 python3.14
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow test-documents test-oldest test-pythons test-rllib test-video kills coverage fuzz mutants soak \
	audit check format docs wheel weights clean

help: ## list the targets
	@echo 'usage: make TARGET [PYTHON=python3.12] [ARGS="--help"]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## set everything up in .venv

demo: $(STAMP) ## run the main job, python -m train.benchmark $(ARGS)
	$(VENV_PYTHON) -m train.benchmark $(ARGS)

# The page of the report is tested where Chromium is: on Debian and Ubuntu, apt-get install chromium chromium-driver.
test: $(STAMP) ## run the tests, pytest $(ARGS); those of Flickr8k where $GLIMPSE_DATA has it
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n logical --dist worksteal $(ARGS)

test-slow: $(STAMP) ## run the tests that take minutes
	$(VENV_PYTHON) -m pytest -m slow $(ARGS)

soak: fuzz ## fuzz, kill every training command 50 times, and step the environments for hours (1.5 h; Flickr8k needs $$GLIMPSE_DATA)
	$(VENV_PYTHON) -m pytest --hypothesis-profile=soak tests/glimpse_env/envs/test_state_machine.py
	$(VENV_PYTHON) -m train.soak resume
	$(VENV_PYTHON) -m train.soak steps
	[ -z "$$GLIMPSE_DATA" ] || $(VENV_PYTHON) -m train.soak steps --env Glimpse/Flickr8k-v0 --steps 1000000

kills: $(STAMP) ## kill every training command once, alone and in several processes, and resume it (4 min)
	$(VENV_PYTHON) -m train.soak resume --kills 1
	$(VENV_PYTHON) -m pytest -m slow tests/train/common/test_distributed.py -k 'left_alone and not reinforce-words' $(ARGS)

test-documents: $(STAMP) ## run README, the tutorials and the examples as they are shown: they train for minutes
	$(VENV_PYTHON) -m pytest -m slow tests/project/test_documents.py tests/project/test_ecosystem.py $(ARGS)

test-oldest: $(STAMP) ## run the environments' tests on the oldest gymnasium that is supported
	$(VENV_PYTHON) -m pip install --quiet --no-deps --upgrade --target build/oldest gymnasium==1.2.2
	PYTHONPATH=build/oldest $(VENV_PYTHON) -m pytest \
		$(patsubst %,tests/glimpse_env/envs/test_%.py,env vector registration golden determinism) \
		-k "not thousands and not flickr8k" $(ARGS)

test-pythons: ## run the tests of determinism on every Python of $(PYTHONS) that is here, each in an environment under build/
	@for python in $(PYTHONS); do \
		version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || \
			{ echo "$$python is not here"; continue; }; \
		echo "$$python: Python $$version"; \
		{ [ -x "build/python$$version/bin/python" ] || "$$python" -m venv "build/python$$version"; } && \
		"build/python$$version/bin/python" -m pip install --quiet ".[vision]" pytest hypothesis && \
		"build/python$$version/bin/python" -m pytest $(patsubst %,tests/glimpse_env/envs/test_%.py,determinism golden) $(ARGS) || exit 1; \
	done

test-video: $(STAMP) ## run the tests of RecordVideo, with moviepy beside the environment: it asks for an old Pillow
	$(VENV_PYTHON) -m pip install --quiet --no-deps --upgrade --target build/video \
		moviepy imageio imageio-ffmpeg proglog decorator python-dotenv
	PYTHONPATH=build/video $(VENV_PYTHON) -m pytest tests/glimpse_env/envs/test_recording.py tests/project/test_documents.py -k "recording or guide" $(ARGS)

# Ray pins gymnasium: it is installed in an environment of its own, above .venv, whose torch it shares.
RAY := build/rllib
WHERE := import sysconfig; print(sysconfig.get_path("purelib"))
test-rllib: $(STAMP) ## run the tests of RLlib and of sweeps, with Ray and the gymnasium it wants above .venv (7 min)
	[ -x $(RAY)/bin/python ] || $(VENV_PYTHON) -m venv $(RAY)
	$(VENV_PYTHON) -c '$(WHERE)' > "$$($(RAY)/bin/python -c '$(WHERE)')/above.pth"
	$(RAY)/bin/python -m pip install --quiet "ray[rllib,tune]>=2.60"
	PYTHONPATH=. OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest tests/train/rllib/test_rllib.py tests/train/test_sweep.py $(ARGS)

coverage: $(STAMP) ## line and branch coverage of glimpse_env by its own tests; below 95 % and 90 % it fails
	$(VENV_PYTHON) -m pytest --cov=glimpse_env --cov-branch --cov-report=json:build/coverage.json --cov-report=term \
		tests/glimpse_env $(ARGS)
	@$(VENV_PYTHON) -c 'import json; had = json.load(open("build/coverage.json"))["totals"]; \
		line = 100 * had["covered_lines"] / had["num_statements"]; \
		branch = 100 * had["covered_branches"] / had["num_branches"]; print(f"lines {line:.1f} %, branches {branch:.1f} %"); \
		raise SystemExit(line < 95 or branch < 90)'

fuzz: $(STAMP) ## some 16,000 spoiled files, options and actions, and all examples of the metrics (15 min); atheris where it is installed: pip install atheris
	GLIMPSE_FUZZ=$${GLIMPSE_FUZZ:-600} $(VENV_PYTHON) -m pytest --hypothesis-profile=thorough \
		tests/project/test_fuzz.py tests/glimpse_env/metrics $(ARGS)
	@if $(VENV_PYTHON) -c 'import atheris' 2>/dev/null; then $(VENV_PYTHON) -m tests.fuzz; \
		else echo 'atheris is not installed: hypothesis alone has fuzzed'; fi

mutants: $(STAMP) ## mutation testing of BLEU and the dynamics with mutmut (an hour on one core); the rest: mutmut results
	$(VENV_PYTHON) -m pip install --quiet mutmut
	OMP_NUM_THREADS=1 $(VENV)/bin/mutmut run --max-children 1 $(ARGS)

# --strict: a package that the service does not know counts as not audited, not as sound.
audit: $(STAMP) ## look for known vulnerabilities of what is installed, where the service of pip-audit can be reached
	@$(VENV_PYTHON) -m pip install --quiet --upgrade --target build/audit pip-audit
	@mkdir -p build && $(VENV_PYTHON) -m pip freeze --exclude-editable > build/installed.txt
	@PYTHONPATH=build/audit $(VENV_PYTHON) -m pip_audit --strict --no-deps --disable-pip -r build/installed.txt $(ARGS) || { \
		echo 'not audited, or not sound: see above; pip-audit asks a service that must be reached' >&2; exit 1; }

check: $(STAMP) ## ruff, mypy and import-linter, as CI runs them
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## let ruff format and mend what it can
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

docs: export NO_MKDOCS_2_WARNING := 1  # a notice of the theme, at every build
docs: $(STAMP) ## build the documentation into build/site, with no warning
	$(VENV_PYTHON) -m mkdocs build --strict

wheel: $(STAMP) ## build dist/, then install the wheel alone in a clean environment and step Shapes there
	rm -rf build dist
	$(VENV_PYTHON) -m build --no-isolation
	GLIMPSE_DIST=dist $(VENV_PYTHON) -m pytest -m "slow or not slow" tests/project/test_packaging.py $(ARGS)

weights: $(STAMP) ## train the shipped captioners and attention again (4 h on two cores; needs $$GLIMPSE_DATA)
	sh -exc "$$(sed 's|^train|$(VENV_PYTHON) -m train|' train/cards/trainings.txt)"
	$(VENV_PYTHON) -m train.standings
	$(VENV_PYTHON) -m train.standings --env Glimpse/ShapesLarge-v0
	$(VENV_PYTHON) -m train.standings --env Glimpse/Flickr8k-v0 --split val
	$(VENV_PYTHON) -m train.cards

clean: ## remove what was built and cached; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage* mutants
	find . -path ./$(VENV) -prune -o -path ./runs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv with a working pip is kept and brought up to date; any other is made anew.
$(STAMP): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "$(PYTHON) was not found; install Python >= 3.10 or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python >= 3.10 is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV_PYTHON) -m pip install "pip>=21.3"
	$(VENV_PYTHON) -m pip install -e ".[$(EXTRAS)]"
	@touch $@
