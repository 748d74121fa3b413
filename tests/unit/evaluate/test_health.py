from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.evaluate.forward import generate, vocabulary_size
from forgetkit.evaluate.health import (
    HealthNumbers,
    distinct_ngrams,
    fluency,
    health_prompts,
    judge_health,
    measure_fluency,
    nonfinite_weights,
    repeated_ngrams,
)
from forgetkit.evaluate.losses import measure_losses
from tests import toys
from tests.unit.evaluate.conftest import PLAIN, corpus

HELD = PLAIN * 3


def numbers(model: PreTrainedModel) -> HealthNumbers:
    blocks = corpus(HELD)
    losses = measure_losses(model, blocks, list(range(len(blocks))))
    greedy, sampled, finite = measure_fluency(model, health_prompts(blocks, 8, 12), 24, eos_id=0, seed=0)
    return HealthNumbers(
        vocabulary_size(model),
        nonfinite_weights(model),
        losses.nonfinite + (not finite),
        losses.series().mean,
        losses.series("entropy").mean,
        greedy,
        sampled,
    )


def nan_weight(model: PreTrainedModel) -> None:
    model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")


def infinite_weight(model: PreTrainedModel) -> None:
    model.model.norm.weight[3] = float("inf")


def uniform(model: PreTrainedModel) -> None:
    model.model.norm.weight.zero_()


def constant(model: PreTrainedModel) -> None:
    """All layers silent, the embedding the same for every input: always the same token, with certainty."""
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    table = model.get_input_embeddings().weight
    table.zero_()
    table[:, 0] = 1.0
    table[7, 0] = 3.0


def shuffled(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        flat = parameter.view(-1)
        flat.copy_(flat[torch.randperm(flat.numel(), generator=generator)])


def sharpened(model: PreTrainedModel) -> None:
    model.model.norm.weight.mul_(6.0)


def flattened(model: PreTrainedModel) -> None:
    model.model.norm.weight.mul_(0.4)


def noisy(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std())


@pytest.mark.parametrize(
    ("breakage", "word"),
    [
        (nan_weight, "not finite"),
        (infinite_weight, "not finite"),
        (uniform, "uniform"),
        (constant, "repeats"),
        (shuffled, "loss"),
        (sharpened, "entropy"),
        (flattened, "entropy"),
        (noisy, "loss"),
    ],
)
def test_broken_models_are_unhealthy(
    trained: PreTrainedModel, breakage: Callable[[PreTrainedModel], None], word: str
) -> None:
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        breakage(broken)
    verdict = judge_health(numbers(broken), numbers(trained))
    assert not verdict.healthy
    assert any(word in reason for reason in verdict.reasons), verdict.reasons


def test_the_baseline_and_a_slightly_moved_model_are_healthy(trained: PreTrainedModel) -> None:
    own = numbers(trained)
    assert judge_health(own).healthy, judge_health(own).reasons
    assert judge_health(own, own).healthy
    moved = copy.deepcopy(trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.abs().mean() * 0.01)
    assert judge_health(numbers(moved), own).healthy, judge_health(numbers(moved), own).reasons


@pytest.mark.parametrize("breakage", [uniform, constant, nan_weight])
def test_dead_models_show_without_a_baseline(
    trained: PreTrainedModel, breakage: Callable[[PreTrainedModel], None]
) -> None:
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        breakage(broken)
    assert not judge_health(numbers(broken)).healthy


def test_thresholds_are_exact() -> None:
    base = HealthNumbers(1000, 0, 0, loss=4.0, entropy=3.0)
    assert judge_health(HealthNumbers(1000, 0, 0, 4.39, 3.0), base).healthy
    assert not judge_health(HealthNumbers(1000, 0, 0, 4.41, 3.0), base).healthy
    assert judge_health(HealthNumbers(1000, 0, 0, 4.0, 1.51), base).healthy
    assert not judge_health(HealthNumbers(1000, 0, 0, 4.0, 1.49), base).healthy
    assert not judge_health(HealthNumbers(1000, 0, 0, float("nan"), 3.0), base).healthy


def test_ngrams_by_hand() -> None:
    assert repeated_ngrams([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_ngrams([5] * 8) == pytest.approx(4 / 5)
    assert repeated_ngrams([1, 2]) == 0.0
    assert distinct_ngrams([[1, 2, 1], [1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct_ngrams([[1]], 2) is None
    assert fluency([[], [1, 2, 3, 4, 5]]).empty == 0.5


@pytest.mark.parametrize("family", sorted(toys.FAMILIES))
def test_cached_decoding_equals_full_forward(family: str) -> None:
    model = toys.model(family, vocab_size=60)
    prompts = torch.tensor([[3, 9, 27, 41, 5], [8, 8, 1, 2, 3]])
    made = generate(model, prompts, 12)
    ids = prompts
    for t in range(12):
        with torch.no_grad():
            p = torch.softmax(model(input_ids=ids, use_cache=False).logits[:, -1].float(), -1)
        token = p.argmax(-1)
        assert made.ids[:, t].tolist() == token.tolist()
        assert made.probability[:, t] == pytest.approx(p.max(-1).values.tolist(), rel=1e-3)
        ids = torch.cat([ids, token[:, None]], 1)


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(trained: PreTrainedModel) -> None:
    prompts = health_prompts(corpus(HELD), 4, 8)
    before = torch.get_rng_state()
    one, two, other = (generate(trained, prompts, 16, seed=s).ids.tolist() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert one == two != other


def test_end_of_text_cuts_the_continuation() -> None:
    model = toys.model(vocab_size=60)
    prompts = torch.tensor([[3, 9, 27, 41, 5]])
    free = generate(model, prompts, 12)
    eos = int(free.ids[0, 4])
    assert generate(model, prompts, 12, eos_id=eos).lengths.tolist() == [free.ids[0].tolist().index(eos)]
