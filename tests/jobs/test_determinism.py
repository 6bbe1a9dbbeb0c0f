"""Deterministic algorithms are what torch is set to, and an operation without one is refused."""

import os

import pytest
import torch

from jobs.determinism import computing_by
from jobs.engine import EngineConfig


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)


def put() -> torch.Tensor:
    """Two values for one place: which one stays is not told."""
    return torch.zeros(2).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))


def test_an_operation_without_a_deterministic_version_is_refused_in_one_line():
    says = r"^engine.algorithms 'deterministic': torch's put_ does not .*=any, or"
    with pytest.raises(ValueError, match=says), computing_by("deterministic"):
        put()
    with computing_by("any"):
        put()


def test_other_faults_pass_as_they_are():
    with pytest.raises(RuntimeError, match="something else"), computing_by("deterministic"):
        raise RuntimeError("something else")


def test_all_that_torch_asks_for_is_set_and_the_process_left_as_it_was():
    with computing_by("deterministic"):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_these_two_can_be_asked_for():
    with pytest.raises(ValueError, match=r"engine.algorithms is 'exact': choose one of any"):
        EngineConfig(algorithms="exact")
