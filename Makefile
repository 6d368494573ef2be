# make help    this text
# make serve   start the server; STUDIES=dir|https://... MODELS=caml,supervised PORT=8000 HOST=127.0.0.1
# make test    all tests                make check   format, lint, types
# make archive a DICOMweb archive on 127.0.0.1:8042 until Ctrl-C; DICOM=dir STORAGE=dir (phantoms without DICOM)
# make demo    a short simulation, ends with a report

PYTHON ?= $(shell command -v python3.11 || command -v python3)
STUDIES ?=
MODELS ?=
HOST ?= 127.0.0.1
PORT ?= 8000
CONF ?=
TESTS ?= tests
DICOM ?=
STORAGE ?=
ARCHIVE_PORT ?= 8042

## Relative paths only, so that a checkout in a folder with spaces works.
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup serve archive test check demo clean

help:
	@sed -n "s/^# //p" Makefile

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"Python {v[0]}.{v[1]} is not supported; install Python 3.11 and run: make PYTHON=python3.11")'
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@echo "installing the pinned requirements into .venv (4 GB, some minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(STAMP)

serve: $(STAMP)
	@$(BIN)/python -m medseg serve $(if $(STUDIES),--studies "$(STUDIES)",--demo) $(if $(MODELS),--models "$(MODELS)") \
		--host "$(HOST)" --port "$(PORT)" $(foreach item,$(CONF),--conf "$(item)")

archive: $(STAMP)
	@$(BIN)/python -m medseg.server.dicom.orthanc $(if $(DICOM),"$(DICOM)") $(if $(STORAGE),--storage "$(STORAGE)") \
		--port "$(ARCHIVE_PORT)"

test: $(STAMP)
	@$(BIN)/python -m pytest $(TESTS)

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

demo: $(STAMP)
	@$(BIN)/python -m medseg phantom demo/data --plain --count 20 --labelled 20
	@$(BIN)/python -m medseg simulate --data demo/data --method caml --strategies random,caml --rounds 2 --per-round 2 \
		--initial 3 --validation 3 --test 4 --iterations 60 --set patch=32,32,16 --set width=8 --out demo/simulation
	@echo "open demo/simulation/report.html"

clean:
	rm -rf .venv demo
