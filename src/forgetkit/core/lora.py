"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by `peft`: attach before training, merge after."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from forgetkit.core.errors import ForgetkitError
from forgetkit.settings import LoraSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attach(model: PreTrainedModel, settings: LoraSettings, name: str = "default", *, seed: int = 0) -> PeftModel:
    """Freeze `model` and put trainable fp32 adapters beside its linear layers, but not the output head.

    The adapters' random start depends on `seed` alone; the global random state is not touched.
    Raises ForgetkitError when `settings.target_modules` matches no layer.
    """
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.target_modules,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    cuda = [model.device.index or 0] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), warnings.catch_warnings():
        # peft tells that fan_in_fan_out is decided per layer for models that mix the two kinds: intended.
        warnings.filterwarnings("ignore", message="fan_in_fan_out", category=UserWarning)
        warnings.simplefilter("ignore", FutureWarning)  # peft's own calls of what transformers renamed
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config, adapter_name=name)
        except ValueError as error:
            if "target module" not in str(error).lower():
                raise
            raise ForgetkitError(
                f"no layer matches '{settings.target_modules}'", "lora.target_modules", "use 'all-linear'"
            ) from error
    # With a model id here, saving an adapter would look the base model's config up on the Hub.
    adapted.peft_config[name].base_model_name_or_path = None
    # Trap P3: a checkpointed segment whose inputs need no gradient gives its adapters none.
    model.enable_input_require_grads()
    return adapted


def merge(model: PeftModel) -> PreTrainedModel:
    """A plain model with the adapters added into the weights: a copy, all in fp32, on the CPU.

    `model` stays as it is. The copy never touches its device: in fp32, 7B parameters would not fit where they were
    trained.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        copied = torch.nn.Parameter(parameter.detach().to("cpu", torch.float32, copy=True))
        memo[id(parameter)] = copied
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    adapted = copy.deepcopy(model, memo)
    adapted.get_base_model().disable_input_require_grads()
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapters alone: fp32 safetensors and peft's configuration, without its model card."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def pair(baseline: PreTrainedModel, folder: Path) -> tuple[PreTrainedModel, PeftModel]:
    """(`baseline`, the same with the adapters of `folder`) on one copy of the weights.

    The first is a view that switches the adapters off while it computes; `baseline` itself has them from now on.
    """
    adapted = PeftModel.from_pretrained(baseline, str(folder)).eval()
    return without_adapters(adapted), adapted


def without_adapters(adapted: PeftModel) -> PreTrainedModel:
    """A view of the model as it was before adapters were attached; shares its weights."""
    return _Unadapted(adapted)


class _Unadapted:
    """An adapted model as it was before: calls of it, or of its trunk, run without the adapters."""

    def __init__(self, adapted: PeftModel) -> None:
        self._adapted, self._plain = adapted, adapted.get_base_model()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._plain, name)
        return self._off(value) if name == self._plain.base_model_prefix else value

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._off(self._plain)(*given, **named)

    def _off(self, compute: Any) -> Any:
        def computed(*given: Any, **named: Any) -> Any:
            with self._adapted.disable_adapter():
                return compute(*given, **named)

        return computed
