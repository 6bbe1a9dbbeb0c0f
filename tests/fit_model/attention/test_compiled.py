"""What claims torch.compile gives the numbers of the plain layer, outputs and gradients."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fit_model.attention.mixers import COMPILED
from tests.fit_model.attention.every_operator import NAMES

FORMS = [name for name in NAMES if not name.endswith("in chunks")]
CLAIMED = [name for name in FORMS if name.partition(" ")[0] in (*COMPILED, "bixt")]
MODELS = ["encoder softmax", "trunk softmax", "trunk xca"]
BY_DEFAULT = ["softmax"]


def compiled(backend: str, names: list[str]) -> dict[str, float | str]:
    command = [sys.executable, "-m", "tests.fit_model.attention.compiling", backend, *names]
    folder = Path(__file__).parents[3]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def apart():
    return compiled("aot_eager", [*CLAIMED, "aft_full"])


@pytest.mark.parametrize("name", CLAIMED)
def test_an_operator_that_claims_it_is_one_graph_with_the_same_numbers(apart, name):
    assert isinstance(apart[name], float), apart[name]
    assert apart[name] <= 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_fit_gives_the_same_numbers_compiled(name):
    error = compiled("aot_eager", [name])[name]
    assert isinstance(error, float), error
    assert error <= 1e-5


def test_an_operator_that_looks_at_its_sums_is_no_single_graph(apart):
    assert "aft_full" not in COMPILED
    assert "data-dependent" in apart["aft_full"]


def test_the_default_backend_gives_the_same_numbers():
    if shutil.which("g++") is None:
        pytest.skip("the default backend needs g++ on a CPU")
    for name, error in compiled("inductor", BY_DEFAULT).items():
        assert isinstance(error, float), error
        assert error <= 1e-5, name
