"""What the tests of the models share: chance that is the same whatever ran before."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_chance() -> None:
    torch.manual_seed(0)
