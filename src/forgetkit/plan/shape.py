"""A model's size and arithmetic, from its configuration alone: no weights are read and none are made."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from forgetkit.core import lora
from forgetkit.settings import FinetuneSettings, TrainSettings


def read_config(folder: Path) -> Any:
    """The configuration of a model folder."""
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def with_layers(config: Any, layers: int) -> Any:
    """A copy of the configuration with the first `layers` layers alone; lists with an entry per layer are cut too."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    before = int(text.num_hidden_layers)
    layers = min(layers, before)
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == before:
            setattr(text, name, type(value)(value[:layers]))
    text.num_hidden_layers = layers
    return short


def skeleton(config: Any, dtype: torch.dtype, training: TrainSettings | None = None) -> Any:
    """The model on the meta device: shapes and dtypes without values; with adapters if `training` asks for them.

    Raises:
        ForgetkitError: `lora.target_modules` matches no layer.
    """
    with torch.device("meta"):
        # A copy: transformers notes the choice of attention in what it is given, which may be a living model's.
        net = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, attn_implementation="sdpa")
    net.config.use_cache = False
    if training is not None and training.adapter == "lora":
        net = lora.attach(net, training.lora)
    return net


@dataclass(frozen=True)
class Shape:
    """What arithmetic and memory depend on."""

    parameters: int
    """All of them; tied ones count once."""
    matmul: int
    """Weights that every token is multiplied with, the head's left out."""
    head: int
    """Weights of the language-model head: vocabulary times hidden size."""
    attention: int
    """Heads times head size, summed over the layers."""
    layers: int
    vocabulary: int
    hidden: int

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype = torch.bfloat16) -> Shape:
        """The shape that a configuration describes.

        Experts of mixture models count as if every token used all of them: an upper bound.
        """
        net, text = skeleton(config, dtype), config.get_text_config()
        head = net.get_output_embeddings()
        linear = [m for m in net.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        heads = int(text.num_attention_heads)
        width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
        return cls(
            parameters=sum(p.numel() for p in net.parameters()),
            matmul=sum(m.weight.numel() for m in linear),
            head=head.weight.numel(),
            attention=heads * width * int(text.num_hidden_layers),
            layers=int(text.num_hidden_layers),
            vocabulary=int(head.weight.shape[0]),
            hidden=int(text.hidden_size),
        )

    def forward_flops(self, tokens: float, block: float, head_rows: float | None = None) -> float:
        """FLOPs of a forward pass over `tokens` in blocks of `block` tokens, logits at `head_rows` of them (None: all).

        Two per weight and token; causal attention: two products of a query with half the block's keys on average.
        """
        rows = tokens if head_rows is None else head_rows
        return tokens * (2 * self.matmul + 2 * block * self.attention) + rows * 2 * self.head

    def training_flops(
        self,
        tokens: float,
        block: float,
        head_rows: float | None = None,
        *,
        settings: TrainSettings,
        adapters: int = 0,
    ) -> float:
        """FLOPs of forward and backward passes.

        Backward is two forwards: by the states and by the weights. Frozen weights (LoRA) need the first alone;
        `adapters` is the number of their parameters. Gradient checkpointing repeats the forward pass below the head.
        """
        rows = tokens if head_rows is None else head_rows
        trunk = self.forward_flops(tokens, block, 0)
        head = self.forward_flops(0, block, rows)
        if settings.adapter == "lora":
            attention = tokens * 2 * block * self.attention
            total = 2 * (trunk - attention + head) + 3 * (attention + 2 * tokens * adapters)
        else:
            total = 3 * (trunk + head)
        again = trunk + 2 * tokens * adapters
        return total + (again if settings.gradient_checkpointing else 0)


def trained_parameters(config: Any, training: TrainSettings) -> int:
    """How many parameters a training changes: all of them, or the adapters'."""
    net = skeleton(config, torch.float32, training)
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def optimizer_steps(blocks: int, settings: TrainSettings) -> int:
    """Optimiser steps of a training on `blocks` target blocks."""
    return math.ceil(blocks * settings.epochs / (settings.batch_blocks * settings.accumulation))


def micro_rows(settings: TrainSettings, *, with_retain: bool) -> int:
    """Blocks in a micro-batch, retain blocks included."""
    extra = settings.retain_ratio if isinstance(settings, FinetuneSettings) and with_retain else 0.0
    return settings.batch_blocks + round(settings.batch_blocks * extra)
