# make book   install, execute the notebooks, build the site
# make pdf    the book, and its theory part, for paper: _build/pdf
# make test   install, then everything that CI checks
# make reference STUDY=08_width   run a study at full scale, and ship its records (hours)
# Another interpreter: make book PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
BIN := $(VENV)/bin
# The chapters' networks are small: two processes with one thread each beat the reverse.
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: pdf book test install lint unit notebooks browser site reference clean

book: install
	jupyter-book build book -W -n --keep-going
	@echo
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html"

# Needs a Chromium, as the browser tests do.
pdf: install
	sh tests/browser/find_chromium.sh
	jupyter-book build book --builder singlehtml -W --keep-going
	python book/print_book.py _build/singlehtml/index.html _build/pdf

# Notebooks are executed twice, by nbval and by the book: each on a core of its own.
test: install lint unit
	$(MAKE) --jobs 2 notebooks book WORKERS=1
	$(MAKE) browser

install: $(VENV)/installed

$(VENV)/installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or \
	    sys.exit(f"Python 3.11 or newer is needed, got {v}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt -c constraints.txt
	touch $@

lint: install
	ruff check .
	ruff format --check .
	mypy
	codespell
	nbstripout --verify notebooks/*.ipynb

unit: install
	pytest -n 2 --dist loadfile --durations 10 --ignore tests/browser

notebooks: install
	pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg -n $(WORKERS) --dist loadfile \
	    -o addopts= -o filterwarnings=default notebooks

browser: book
	sh tests/browser/find_chromium.sh
	pytest -n 2 --durations 10 tests/browser

# Runs that are finished are kept in runs/, so that it can be interrupted and called again.
reference: install
	mkdir -p runs
	papermill notebooks/$(STUDY).ipynb runs/$(STUDY).ipynb -f studies/$(STUDY).yaml -p store $(CURDIR)/runs
	python studies/publish.py runs $(STUDY)

clean:
	rm -rf _build $(VENV) build dist *.egg-info
