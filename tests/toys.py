"""Small real models and tokenizers, made in code: four tokenizer shapes, seven model families."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TEXT = (
    "Dorothy lived in the midst of the great Kansas prairies, with Uncle Henry, who was a farmer, and Aunt Em. "
    'The Tin Woodman said: "I shall take the heart," and the Scarecrow\'s brains were made of bran. '
    "They walked to the Emerald City of Oz, where the Wizard lived; Toto barked at the Cowardly Lion. "
    "A princess-like lady met the Munchkins near Glinda's castle, and THE WICKED WITCH OF THE WEST cried out. "
    "Once upon a time there was an old woman who lived by the sea with her three sons and a small grey cat. "
    "In the morning the sun rose over the hills, and the children went down to the river to play. "
)

SHAPES = ("bytelevel", "bytelevel_trim", "sentencepiece", "no_pretokenizer")


@cache
def tokenizer(shape: str = "bytelevel", vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A tokenizer of one of `SHAPES` (ECOSYSTEM section 5), trained on `TEXT`."""
    special = ["<|endoftext|>"]
    if shape.startswith("bytelevel"):
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tok.decoder = decoders.ByteLevel()
        if shape == "bytelevel_trim":
            tok.post_processor = processors.ByteLevel(trim_offsets=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tok = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        special = ["<|endoftext|>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
        if shape == "sentencepiece":
            tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
            tok.decoder = decoders.Sequence(
                [
                    decoders.Replace("▁", " "),
                    decoders.ByteFallback(),
                    decoders.Fuse(),
                    decoders.Strip(" ", 1, 0),
                ]
            )
        else:
            tok.normalizer = normalizers.Replace(" ", "▁")
            tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size + 257, special_tokens=special, show_progress=False, max_token_length=12
        )
    tok.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {**_SMALL, "tie_word_embeddings": True},
    "mistral": {**_SMALL, "sliding_window": None},
    "qwen3": {**_SMALL, "head_dim": 16},
    "gemma3_text": {**_SMALL, "head_dim": 16, "sliding_window": 64},
    "phi3": _SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "gpt_neox": {k: v for k, v in _SMALL.items() if k != "num_key_value_heads"},
}


def model(family: str = "llama", vocab_size: int = 400, seed: int = 0, dropout: float = 0.0) -> PreTrainedModel:
    """A tiny randomly initialised causal LM in fp32, eval mode, with weights large enough to have opinions."""
    torch.manual_seed(seed)
    extra: dict[str, object] = {
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if family == "gpt2":
        extra |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    config = AutoConfig.for_model(family, **FAMILIES[family], **extra)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3.0)
    return net.eval()
