from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.heads import SplitHead
from forgetkit.core.lora import attach, merge, pair, save
from forgetkit.settings import LoraSettings
from tests import toys

SETTINGS = LoraSettings(rank=4, alpha=8.0)
IDS = torch.arange(1, 41).reshape(2, 20)


def _one_step(model: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("family", toys.FAMILIES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_p3_every_adapter_learns_under_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model = attach(toys.model(family), SETTINGS, "student")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    _one_step(model)
    norms = {n: p.norm().item() for n, p in model.named_parameters() if "lora_B" in n}
    assert len(norms) >= 8  # all-linear: at least four layers in each of two blocks
    assert all(norm > 0 for norm in norms.values()), norms


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_merged_model_is_plain_and_equals_the_adapted_one(family: str) -> None:
    base = toys.model(family)
    names = set(base.state_dict())
    before = copy.deepcopy(base.state_dict())
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    model = attach(base, SETTINGS, "student")
    _one_step(model)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        merged = merge(model)
        actual = merged(input_ids=IDS).logits
    assert set(merged.state_dict()) == names
    assert type(merged) is type(toys.model(family))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    inputs, outputs = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (inputs is outputs) == tied
    for name, value in merged.state_dict().items():
        if "emb" in name or "wte" in name or "lm_head" in name or "embed_out" in name or "norm" in name:
            assert torch.equal(value, before[name]), name
    assert any(not torch.equal(value, before[name]) for name, value in merged.state_dict().items())
    assert all(p.requires_grad for p in merged.parameters())


def test_bf16_base_is_merged_in_fp32() -> None:
    model = attach(toys.model("llama").bfloat16(), SETTINGS, "student")
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    assert {p.dtype for p in adapters} == {torch.float32}
    with torch.no_grad():
        for p in adapters:
            p.fill_(1e-3)
    merged = merge(model)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert not any(module._forward_hooks for module in merged.modules())
    weights = [p for n, p in merged.named_parameters() if "q_proj" in n]
    assert weights
    for p in weights:
        assert p.dtype == torch.float32
        assert not torch.equal(p, p.bfloat16().float())  # the small addition was not rounded away


def test_merging_leaves_the_adapted_model_as_it_is() -> None:
    model = attach(toys.model("gpt2"), SETTINGS, "student")
    _one_step(model)
    state = copy.deepcopy(model.state_dict())
    merge(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert any("lora_" in n and p.requires_grad for n, p in model.named_parameters())


def test_start_depends_on_the_seed_alone() -> None:
    def start(seed: int) -> list[torch.Tensor]:
        return [p for n, p in attach(toys.model(), SETTINGS, "student", seed=seed).named_parameters() if "lora_A" in n]

    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = toys.model()
    torch.set_rng_state(state)
    attach(model, SETTINGS, "student")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(start(1), start(1), strict=True))
    assert not torch.equal(start(1)[0], start(2)[0])


def test_a_pattern_that_matches_nothing_is_a_users_mistake() -> None:
    with pytest.raises(ForgetkitError, match="no layer matches"):
        attach(toys.model(), LoraSettings(target_modules="nothing_like_this"), "student")


@pytest.mark.parametrize("family", sorted(toys.FAMILIES))
def test_one_copy_of_the_weights_plays_both_roles(family: str, tmp_path: Path) -> None:
    trained = attach(toys.model(family), SETTINGS)
    _one_step(trained)
    save(trained, tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    plain = toys.model(family)
    held = {p.data_ptr() for p in plain.parameters()}
    baseline, reinforced = pair(plain, tmp_path / "adapter")
    assert {p.data_ptr() for n, p in reinforced.named_parameters() if "lora_" not in n} == held
    with torch.no_grad():
        before, after = toys.model(family)(input_ids=IDS).logits, trained.eval()(input_ids=IDS).logits
        assert not torch.allclose(before, after)
        for _ in range(2):  # neither role leaves a trace in the other
            torch.testing.assert_close(reinforced(input_ids=IDS).logits, after)
            torch.testing.assert_close(baseline(input_ids=IDS).logits, before)
            for model, logits in ((baseline, before), (reinforced, after)):
                head = SplitHead(model)
                torch.testing.assert_close(head.logits(head.hidden(IDS)), logits)
