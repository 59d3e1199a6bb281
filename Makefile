# What a newcomer types. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv

# Extras of setup.py, such as EXTRAS=demo, or EXTRAS= for none; left out: as last time, at first dev,demo,hf.
# DETECTRON2: a requirement, such as git+https://... or a folder, that replaces the Detectron2 in the environment; left
# out: keep that one; where there is none, install the one named in tools/setup_environment.py.

# Arguments for pytest, such as TESTS="tests/test_config.py -k published"
TESTS ?= tests

RUN := $(VENV)/bin/python
UV := $(RUN) -m uv
SETUP_OPTIONS := $(if $(filter-out undefined,$(origin EXTRAS)),--extras "$(EXTRAS)") \
	$(if $(DETECTRON2),--detectron2 "$(DETECTRON2)")

.DEFAULT_GOAL := help
.PHONY: help setup test lint format demo demo-video train-digits bench lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 16

setup:  ## build $(VENV) from pinned versions [PYTHON=, VENV=, EXTRAS=, DETECTRON2=]
	@$(PYTHON) tools/setup_environment.py --venv "$(VENV)" $(SETUP_OPTIONS)

# As many processes as cores, and one thread in each: more would only wait for each other. A file stays in one process,
# so that what its tests share is made once.
test: setup  ## run the tests on the CPU [TESTS=]
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(TESTS)

lint: setup  ## style, formatting and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: setup  ## let ruff rewrite what lint complains about, where it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

demo: setup  ## prepare the digits, evaluate the shipped checkpoint, draw, fine-tune for two minutes
	$(RUN) tools/run_demo.py $(ARGS)

DIGITS_VIDEO := configs/digits/video.yaml
VIDEO_WEIGHTS := weights/digits_video.safetensors
VIDEO_CLIPS ?= 000000 000001 000002 000003

demo-video: setup  ## evaluate the shipped video checkpoint on moving digits, and film its predictions [VIDEO_CLIPS=]
	$(RUN) datasets/prepare_digits.py --video
	@mkdir -p output/demo_video && folder=$$(mktemp -d output/demo_video/run_XXXX) && \
	$(RUN) train_net.py --config-file $(DIGITS_VIDEO) --eval-only MODEL.WEIGHTS $(VIDEO_WEIGHTS) OUTPUT_DIR $$folder && \
	for clip in $(VIDEO_CLIPS); do \
		$(RUN) demo/demo.py --config-file $(DIGITS_VIDEO) --video-input datasets/digits_video/val/JPEGImages/$$clip \
			--fps 8 --output $$folder/$$clip.mp4 --json $$folder/$$clip.json --opts MODEL.WEIGHTS $(VIDEO_WEIGHTS) || exit 1; \
	done && echo "Videos and the objects in them: $$folder"

DIGITS := configs/digits/panoptic.yaml

train-digits: setup  ## train the shipped checkpoint from nothing, into output/train_digits
	$(RUN) datasets/prepare_digits.py
	$(RUN) tools/pretrain_digits_backbone.py --config-file $(DIGITS) --output output/train_digits/backbone.pth
	$(RUN) train_net.py --config-file $(DIGITS) MODEL.WEIGHTS output/train_digits/backbone.pth \
		OUTPUT_DIR output/train_digits $(ARGS)
	$(RUN) tools/convert_checkpoint.py output/train_digits/model_final.pth \
		output/train_digits/digits_panoptic.safetensors --dtype float16

bench: setup  ## time the stages of a model [ARGS=]
	$(RUN) tools/benchmark.py $(ARGS)

# Pins for every Python that setup.py supports. setuptools and wheel build Detectron2; panopticapi-lite forbids NumPy 2 in
# its metadata but not in its code, and cityscapesscripts asks for the `typing` that is part of Python: hence the overrides.
RESOLVE := $(UV) pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header --upgrade

lock:  ## raise the pins to the newest versions that fit setup.py
	mkdir -p build
	printf 'panopticapi-lite\nsetuptools\nwheel\n' > build/more.in
	printf 'numpy>=1.24\ntyping; python_version < "3"\n' > build/overrides.txt
	$(RESOLVE) --overrides build/overrides.txt setup.py build/more.in -o build/runtime.txt
	$(RESOLVE) --constraints build/runtime.txt --overrides build/overrides.txt --all-extras setup.py -o build/all.txt
	(echo "# Run-time needs, written by 'make lock'. Detectron2 comes apart: see tools/setup_environment.py."; cat build/runtime.txt) > requirements.txt
	(echo "# What the extras of setup.py add to requirements.txt, written by 'make lock'."; grep -vxFf build/runtime.txt build/all.txt) > requirements-extras.txt
