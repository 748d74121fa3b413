from __future__ import annotations

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from forgetkit.core.provenance import available_cores, pin_threads, seed_everything, versions


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)


def test_versions_name_what_results_depend_on() -> None:
    found = versions()
    names = {"python", "torch", "transformers", "peft", "accelerate", "numpy", "forgetkit", "platform"}
    assert names <= set(found)
    assert found["torch"] == torch.__version__ and found["numpy"] == np.__version__
    json.dumps(found)


def test_pin_threads() -> None:
    assert pin_threads(1) == 1
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert pin_threads(0) == available_cores() == torch.get_num_threads()


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_seed_everything_repeats_every_generator(seed: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(seed)
    first = draw()
    assert draw() != first
    seed_everything(seed)
    assert draw() == first
    seed_everything(seed + 1)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
