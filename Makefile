# The targets that developers and .ci/run share.
.PHONY: install format lint types test slow docs check

install:
	pip install -c constraints.txt -e ".[dev]"

format:
	ruff check --fix .
	ruff format .

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	pytest

slow:
	pytest -m slow

docs:
	sphinx-build -W --keep-going -q -b html docs docs/_build/html

check: lint types test docs
