# make book      the environment, every chapter executed, the HTML built with warnings as errors
# make test      all that CI checks
# make serve     the built book on this machine only
# make prepare   export the notebooks to the library and clean them
# make notebook  Jupyter Lab on nbs/
# make times     record how long each chapter takes (the first page shows it)
# make wheel     build the wheel and use it in fresh environments elsewhere, with the oldest and newest versions allowed
# make bench     this library beside its peers from PyPI, in an environment of its own (benchmarks/against_peers)
# make constraints  write constraints/oldest.txt and newest.txt anew, from the ranges in settings.ini
# make clean     remove what was built; .venv stays (make distclean removes it too)

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
BOOK := _build/html

.PHONY: book test serve prepare notebook times wheel bench constraints clean distclean environment interpreter

book: environment
	@$(BIN)/python _ext/book.py

test: environment
	@$(BIN)/python .ci/check.py

serve:
	@test -f $(BOOK)/index.html || { echo "make: the book is not built yet; run make book first" >&2; exit 2; }
	@echo "open http://127.0.0.1:$(PORT)/ and stop with Ctrl-C"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(BOOK) >/dev/null 2>&1 || { echo "make: port $(PORT) is taken; choose another: make serve PORT=8001" >&2; exit 2; }

prepare: environment
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

notebook: environment
	@$(BIN)/jupyter lab nbs

# parts of it: make wheel WHICH=oldest PYTHONS="python3.10 python3.12" PARTS="plain train"
wheel: interpreter
	@$(PYTHON) .ci/wheel.py $(addprefix --which ,$(WHICH)) $(addprefix --pythons ,$(PYTHONS)) $(addprefix --parts ,$(PARTS))

# parts of it: make bench TASKS="gan_step sampling"; SHORT=1 proves the code in minutes
bench: interpreter
	@$(PYTHON) benchmarks/against_peers/environment.py
	@_build/bench-env/bin/python benchmarks/against_peers/run.py $(TASKS) $(if $(SHORT),--short)

constraints: interpreter
	@$(PYTHON) .ci/constraints.py $(WHICH)

times: environment
	@$(BIN)/python .ci/chapter_times.py

environment: interpreter
	@$(PYTHON) .ci/environment.py

interpreter:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; install Python 3.10 or newer, or name one: make book PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) .ci/environment.py check

clean:
	@rm -rf _build _docs _proc build dist *.egg-info .pytest_cache .hypothesis runs
	@find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv
