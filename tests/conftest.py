"""Options of the tests, and what several of them need."""

import os

import pytest

# The models are small, and threads of workers that share the cores wait for each other. To be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HEAVY = ("torch", "transformers", "numpy", "pandas")  # RecBole imports them first of all


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=20, help="how often a real run is killed (with -m slow)")


@pytest.fixture
def blocked(tmp_path):
    """A folder in which every heavy library fails to be imported."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('imported {name}')\n")
    return tmp_path
