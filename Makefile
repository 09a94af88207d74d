PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-clients test-app test-deploy docs lint release-check

demo: $(INSTALLED)  ## Train, evaluate and predict on drawn chest phantoms
	$(BIN)/python examples/demo.py

test: $(INSTALLED)  ## The test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test-slow: $(INSTALLED)  ## The heavier checks
	$(BIN)/python -m pytest -q -m slow

test-clients: $(INSTALLED)  ## Other libraries around our models, and every family of timm's with MXA grafted on
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[clients]"
	$(BIN)/python -m pytest -q -m clients tests/clients

test-app: $(INSTALLED)  ## The page of `mxa app` in a browser; on Debian: apt-get install chromium
	@command -v chromium > /dev/null || { echo "chromium is missing: apt-get install chromium"; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[app]" playwright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m app tests

test-deploy: $(INSTALLED)  ## Programs around what mxa writes; on Debian: apt-get install dcmtk dicom3tools orthanc npm
	@PATH="$$PATH:/usr/sbin"; for tool in storescu dsrdump dciodvfy Orthanc npm; do command -v $$tool > /dev/null || \
		{ echo "$$tool is missing: apt-get install dcmtk dicom3tools orthanc npm"; exit 1; }; done
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[export,node,ray]"
	npm install --silent --ignore-scripts --prefix $(VENV)/node onnxruntime-node pngjs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m deploy -n 2 --dist loadfile tests

docs: $(INSTALLED)  ## The pages as a site, in site/; to read them: python -m http.server -d site
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/python -m pytest -q -m site tests/docs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

release-check: $(INSTALLED)  ## Build, install and use the package, with the oldest and the newest dependencies
	$(BIN)/python -m pip install -q --disable-pip-version-check build twine packaging
	$(BIN)/python tests/release_check.py

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev,demo]"
	touch $@
