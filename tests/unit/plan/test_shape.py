"""Parameters are exact, and FLOPs are those that torch counts, on three sizes and several families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from forgetkit.core import lora
from forgetkit.core.loop import recomputing
from forgetkit.plan.shape import Shape, optimizer_steps, trained_parameters, with_layers
from forgetkit.settings import LoraSettings, ReinforceSettings
from tests import toys

SIZES = {
    "small": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "middle": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4},
    "large": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_attention_heads": 4},
}
ROWS, TOKENS = 2, 48
LORA = ReinforceSettings(adapter="lora", lora=LoraSettings(rank=4))


def config(size: str, vocabulary: int = 500) -> Any:
    return AutoConfig.for_model("llama", vocab_size=vocabulary, pad_token_id=0, **SIZES[size])


def real(size: str) -> Any:
    """The model itself; torch counts no FLOPs of its CPU attention kernel, so the plain one."""
    return AutoModelForCausalLM.from_config(config(size), attn_implementation="eager")


def counted(net: Any, *, backward: bool = False) -> int:
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = net(input_ids=ids, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def above_the_diagonal(shape: Shape, passes: int) -> float:
    """What plain attention computes for keys that causal attention does not see."""
    return passes * ROWS * TOKENS * 2 * TOKENS * shape.attention


@pytest.mark.parametrize("size", SIZES)
def test_forward_flops_are_those_counted(size: str) -> None:
    shape = Shape.of(config(size))
    expected = counted(real(size)) - above_the_diagonal(shape, 1)
    assert shape.forward_flops(ROWS * TOKENS, TOKENS) == pytest.approx(expected, rel=0.01)
    assert shape.forward_flops(100, TOKENS, 0) == shape.forward_flops(100, TOKENS) - 200 * shape.head


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_flops_are_those_counted(size: str, checkpointing: bool) -> None:
    shape, net = Shape.of(config(size)), real(size).train()
    settings = ReinforceSettings(gradient_checkpointing=checkpointing)
    with recomputing(net, checkpointing):
        total = counted(net, backward=True)
    expected = total - above_the_diagonal(shape, 4 if checkpointing else 3)
    # torch stops repeating a layer once it has all that the backward pass reads: its last product is not repeated.
    allowed = 0.07 if checkpointing else 0.03
    assert shape.training_flops(ROWS * TOKENS, TOKENS, settings=settings) == pytest.approx(expected, rel=allowed)


@pytest.mark.parametrize("size", SIZES)
def test_lora_flops_are_those_counted(size: str) -> None:
    shape, net = Shape.of(config(size)), lora.attach(real(size), LORA.lora).train()
    adapters = trained_parameters(config(size), LORA)
    expected = counted(net, backward=True) - above_the_diagonal(shape, 3)
    told = shape.training_flops(ROWS * TOKENS, TOKENS, settings=LORA, adapters=adapters)
    assert told == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_parameters_are_exact_in_every_family(family: str) -> None:
    net = toys.model(family)
    shape = Shape.of(net.config)
    assert shape.parameters == sum(p.numel() for p in net.parameters())
    assert shape.vocabulary == 400
    assert shape.hidden == 32
    adapted = lora.attach(net, LORA.lora)
    assert trained_parameters(net.config, LORA) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained_parameters(net.config, ReinforceSettings()) == shape.parameters


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_fewer_layers_make_a_model_of_that_depth(family: str) -> None:
    whole = toys.model(family).config
    one = with_layers(whole, 1)
    assert int(whole.get_text_config().num_hidden_layers) == 2
    layer = Shape.of(whole).parameters - Shape.of(one).parameters
    assert layer > 0
    AutoModelForCausalLM.from_config(one)(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert Shape.of(with_layers(whole, 5)) == Shape.of(whole)


def test_steps_are_those_of_the_loop() -> None:
    assert optimizer_steps(59, ReinforceSettings(epochs=1, batch_blocks=4, accumulation=2)) == 8
    assert optimizer_steps(0, ReinforceSettings()) == 0


def test_a_living_models_configuration_stays_as_it_is() -> None:
    model = toys.model("llama")
    model.set_attn_implementation("eager")
    before = model.config.to_dict()
    Shape.of(model.config)
    assert model.config.to_dict() == before
    assert model.config._attn_implementation == "eager"
