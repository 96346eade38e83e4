# make demo   install into .venv and answer a question about a 4K frame
# make test   install the test tools too and run every test
# make peer   install the public reference implementation into .peer; `make test` then compares with it
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install -q --disable-pip-version-check

.PHONY: demo test peer clean
demo: $(VENV)/demo
	$(VENV)/bin/ps3 ask examples/frames/panel_4k.jpg "what is the word on the purple bar chart?" --overlay panel_seen.jpg

test: $(VENV)/test
	$(VENV)/bin/pytest -q tests

peer: .peer/ready

SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc ps3_sdk runtimes export training -type f ! -name '*.pyc')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/demo: $(VENV)/bin/python $(SOURCES)
	@echo "Compiling the core and installing ps3_sdk into $(VENV); about a minute"
	$(PIP) -c constraints.txt .
	@touch $@

$(VENV)/test: $(VENV)/bin/python $(SOURCES)
	@echo "Installing ps3_sdk with its test and export tools into $(VENV); PyTorch is the large one"
	$(PIP) -c constraints.txt '.[dev,export,vlm,eval]'
ifeq ($(shell uname -sm),Linux x86_64)
	@echo "Installing TensorRT-RTX, which builds engines without a GPU; without it the tests of real engines are skipped"
	-$(PIP) 'tensorrt-rtx>=1.7,<2'
endif
	@touch $@ $(VENV)/demo

.peer/ready: tests/conformance/install_peer.sh
	sh tests/conformance/install_peer.sh .peer
	@touch $@

clean:
	rm -rf $(VENV) .peer build dist
