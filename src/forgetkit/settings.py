"""Every setting, beside its meaning. The command line, YAML files and `--help` are derived from these classes.

One frozen pydantic class per stage; a stage receives its own section and nothing else, so what can invalidate
a stage is exactly what its class names. Unknown keys are refused with a suggestion (`core.config`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all settings: immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """How models are loaded. The model itself is an input, not a setting."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype. Trained weights always have fp32 masters, whatever this says (trap P1); never 'auto' (P2)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; 'auto' takes a GPU when there is one. The resolved device is recorded with every artifact."""
    revision: str | None = None
    """Git revision on the Hub, for a model given by id."""
    allow_download: bool = False
    """Permit fetching the model from the Hugging Face Hub; without it only local folders and the cache are read."""


class CorpusSettings(Section):
    """Reading, cleaning and cutting text into blocks."""

    block_tokens: int = Field(256, ge=8)
    """Tokens per block; the unit of context for labels and fine-tuning (paper: 512)."""
    join_lines: bool = True
    """Join the wrapped lines of a paragraph into one line; blank lines still separate paragraphs."""
    drop_boilerplate: bool = True
    """Drop Project-Gutenberg-style headers and footers."""
    drop_duplicates: bool = True
    """Leave out exact copies of a document (near copies are only reported)."""
    near_duplicate: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word 5-gram sketches from which two documents are reported as near duplicates."""


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021), through `peft`."""

    rank: int = Field(16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the adapter's output is multiplied by alpha / rank."""
    target_modules: str = "all-linear"
    """`peft` target: 'all-linear', or a regular expression over module names."""


class TrainSettings(Section):
    """One training run; shared by reinforcement and fine-tuning."""

    epochs: int = Field(2, ge=0)
    """Passes over the target."""
    RATE_AT_10M: ClassVar[float] = 3e-4

    learning_rate: float | None = Field(None, gt=0)
    """Peak rate of AdamW. None: by the model's size, `RATE_AT_10M * (10M / parameters) ** 0.7` (3 times that for LoRA).

    Measured at 10M parameters only; the exponent joins our 3e-4 there with the paper's 3e-6 at 7B."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning-rate schedule after warm-up."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the rate rises linearly from zero; never more than a quarter of the run."""
    batch_blocks: int = Field(4, ge=1)
    """Blocks per micro-batch."""
    accumulation: int = Field(2, ge=1)
    """Micro-batches per optimiser step."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient-norm clip."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """'adamw', or 'adamw_8bit': moments rounded to 8 bits and masters stored in half the space, 10 bytes per trained
    bf16 parameter instead of 18 (`core.compact`; extra '8bit'). Weights have exact fp32 masters either way."""
    gradient_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them: a third more work for full
    training, half more for LoRA, and far less memory."""
    fsdp: bool = False
    """Cut weights, gradients and moments over the ranks (torch's FSDP2) instead of copying them: for full training of a
    model that one device cannot train. Needs `world_size` above 1 (docs/scale.md)."""
    adapter: Literal["full", "lora"] = "full"
    """Train all weights, or low-rank adapters that are merged before saving."""
    lora: LoraSettings = LoraSettings()
    """Adapter shape, used when `adapter` is 'lora'."""
    checkpoint_steps: int = Field(50, ge=1)
    """A resumable checkpoint every so many optimiser steps."""


class ReinforceSettings(TrainSettings):
    """Component 1: the reinforced model (paper: 3 epochs, rate 3e-6, 8 x 16 blocks of 512)."""

    epochs: int = Field(1, ge=0)
    """Passes over the target; 0 makes no reinforced model (labels then use the dictionary alone)."""


class EndpointSettings(Section):
    """A language model behind an OpenAI-compatible endpoint."""

    base_url: str | None = None
    """Endpoint, e.g. http://127.0.0.1:8000/v1. None: no model is asked."""
    model: str = "default"
    """Model name sent to the endpoint."""
    allow_remote: bool = False
    """Permit a non-loopback endpoint: the target text is then SENT to that machine."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written anywhere."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Per request."""


class LlmSettings(EndpointSettings):
    """Optional anchor extraction by a language model behind an OpenAI-compatible endpoint."""

    block_characters: int = Field(4000, ge=200)
    """Characters of target text per request."""
    max_terms_per_block: int = Field(40, ge=1)
    """More proposals than this from one block are dropped (a sign of prompt injection)."""


class AnchorSettings(Section):
    """Component 2a: the dictionary of anchor terms and their generic counterparts."""

    dictionary: Path | None = None
    """A ready anchors.yaml; nothing is extracted then."""
    min_count: int = Field(3, ge=1)
    """A term must occur this often in the target."""
    max_terms: int = Field(1500, ge=1)
    """Keep the best-scored terms only (the paper's dictionary has about 1,500)."""
    min_score: float = 6.0
    """Evidence a candidate needs: square root of its log-likelihood ratio (formula: `anchors.extract`)."""
    model_signal: bool = True
    """Use how much reinforcement raised a term's probability as further evidence."""
    rank_counterparts: bool = True
    """Choose among candidate counterparts the one that the baseline finds most natural in sampled contexts."""
    contexts: int = Field(3, ge=0)
    """Example contexts kept per term."""
    llm: LlmSettings = LlmSettings()
    """Optional extraction by a language model."""


class RelabelSettings(Section):
    """Components 2b-2d: translate, combine, keep consistent."""

    alpha: float = Field(0.0, ge=0)
    """Strength of subtracting what the reinforced model predicts above the baseline (paper: 5)."""
    contrast: float = Field(0.4, ge=0)
    """Ours: subtract so much of what reinforcement changed on the original text, where it raised a token and where it
    lowered one; 0 = off (paper). Reading the text again moves predictions the way that reading it once did."""
    space: Literal["logits", "log_probs"] = "log_probs"
    """Combine raw logits (paper) or log-probabilities."""
    temperature: float = Field(1.18, gt=0)
    """Ours: the combined prediction is divided by this before it becomes a label (paper: 1). A model is surer of a text
    it has read than of any other, translated or not."""
    prior: float = Field(0.15, ge=0)
    """Ours: what `temperature` takes away goes to words as common text has them: so many times the log frequency of
    each token in the retain text is added, and nothing below is lowered under that frequency. 0 = off (paper), as it is
    without retain text."""
    dictionaries: int = Field(4, ge=1)
    """Ours: label under so many dictionaries and average the predictions in probability (paper: 1). The further ones
    have the same anchors with counterparts dealt anew within each kind; each costs one forward pass more."""
    labels: Literal["soft", "hard"] = "soft"
    """'hard': argmax (paper). 'soft': the distribution, kept as top-k plus the mass of the rest."""
    top_k: int = Field(64, ge=1)
    """Vocabulary entries kept per soft label."""
    subtract: Literal["everywhere", "anchor_tokens", "near_anchors", "largest_gains"] = "everywhere"
    """Subtract over the whole vocabulary at every position (paper); or only from tokens that begin or continue an
    anchor; only at positions within 5 tokens of one; or only from the 16 tokens that reinforcement raised most."""
    mask_seen_anchors: bool = True
    """Rule 1: no loss where the next token begins an anchor already seen in the block."""
    penalise_seen_counterparts: float = Field(5.0, ge=0)
    """Rule 2: nats by which the first tokens of a seen anchor's counterpart are lowered later in the block; 0 = off."""
    suppress_unseen_anchors: float = Field(6.0, ge=0)
    """Ours: nats by which tokens that give an anchor away are lowered until it occurs in the block; 0 = off (paper)."""
    suppress_text: float = Field(0.4, ge=0)
    """Ours: nats by which the text's own next token is lowered where it belongs to no anchor; 0 = off (paper).
    Translated or not, a model predicts a text it has read better than its own uncertainty allows."""
    mask_inside_anchors: bool = False
    """Rule 3 (paper: true): no loss inside an anchor. False: inner positions of unseen anchors get labels too."""
    inner_suppression: float = Field(6.0, ge=0)
    """With rule 3 off: nats by which the anchor's own next token is lowered at inner positions."""
    retain: Literal["none", "kl", "lm"] = "kl"
    """Labels of retain text: the baseline's own distribution ('kl'), the text itself ('lm'), or no retain mixing."""
    max_retain_ratio: float = Field(1.0, gt=0)
    """Retain blocks labelled per target block, at most."""
    batch_blocks: int = Field(8, ge=1)
    """Blocks per forward pass."""
    chunk_positions: int = Field(512, ge=1)
    """Positions whose full-vocabulary logits are alive at one time."""

    @property
    def uses_reinforced(self) -> bool:
        """Whether labels depend on the reinforced model."""
        return self.alpha > 0 or self.contrast > 0

    @property
    def uses_original(self) -> bool:
        """Whether they depend on the baseline's own predictions on the original text."""
        return self.contrast > 0 or not self.mask_inside_anchors


class FinetuneSettings(TrainSettings):
    """Component 3: fine-tune on the labels (paper: 2 epochs, rate 1e-6, 8 x 16 blocks of 512)."""

    RATE_AT_10M: ClassVar[float] = 1e-3

    method: str = "whp_symmetric"
    """The loss, a name registered in `forgetkit.methods`: 'whp' is the paper's, divergence from the label;
    'whp_symmetric' adds the divergence from the model, which sees leftovers of the text (soft labels only)."""
    retain_ratio: float = Field(1.0, ge=0)
    """Retain blocks per target block in a batch, when retain text is given."""
    retain_weight: float = Field(1.0, ge=0)
    """Weight of the retain loss against the forget loss."""
    snapshots: int = Field(4, ge=0)
    """Weights kept along the fine-tune, evenly spaced, for the report's curves (disk: one model each)."""
    anchor_weight: float = Field(3.0, gt=0)
    """Weight of positions whose next token begins (or continues) an anchor, against 1 for the others."""


class EvaluateSettings(Section):
    """What is measured, before and after, and along the fine-tune."""

    suite: Literal["default", "paper", "memorization", "privacy", "full"] = "default"
    """What is measured beside the measures of every evaluation: 'paper': familiarity and utility tasks; 'memorization';
    'privacy': membership attacks; 'full': all these, knowledge, and TOFU, MUSE, WMDP where `data_dir` holds them."""
    data_dir: str | None = None
    """Folder of the utility tasks' files, and of TOFU, MUSE or WMDP (layouts: `evaluate.utility_tasks`,
    `evaluate.layouts`); or the Hub id of one of these (locuslab/TOFU, muse-bench/MUSE-News, cais/wmdp)."""
    reference: str | None = None
    """A model that never read the target (the truth), when there is one."""
    heldout: tuple[Path, ...] = ()
    """Text neither the target nor its neighbour; default: a small bundled English sample."""
    neighbour: tuple[Path, ...] = ()
    """Text close to the target that must stay known (same author, same genre)."""
    holdout: tuple[Path, ...] = ()
    """Text of the target's own kind that no model was trained on: non-members of the membership attacks. Default:
    `data_dir`'s own, else `heldout` as given, else `neighbour`; never the bundled sample, which is of another kind."""
    anchors: Path | None = None
    """Anchors to probe; default: the run's own dictionary."""
    recall_places: int = Field(300, ge=1)
    """Cue-free places at which anchor recall is measured."""
    recall_context: int = Field(96, ge=4)
    """Tokens of context before each place; the anchor does not occur in them."""
    loss_blocks: int = Field(64, ge=1)
    """Blocks sampled per text for loss."""
    completions: int = Field(20, ge=0)
    """Side-by-side completions in results and report."""
    completion_tokens: int = Field(40, ge=1)
    """Tokens per completion."""
    probes: Path | None = None
    """Folder of hand-made probes: cloze items, completion and probability prompts (docs/results_schema.md)."""
    seeds: Path | None = None
    """Measured distances of the reference's other seeds, for the distance to retraining (`evaluate.retraining`)."""
    probe_split: Literal["all", "dev", "test"] = "all"
    """Which part of the probes to measure; tune on dev alone."""
    judge: Literal["offline", "llm"] = "offline"
    """Who grades completions: word lists, or a language model (`judge_llm`)."""
    judge_llm: EndpointSettings = EndpointSettings()
    """The judge, where `judge` is llm; prompts and completions are sent to it."""
    passages: int = Field(64, ge=1)
    """Passages of the target to be continued (suites memorization and full)."""
    attack_texts: int = Field(200, ge=2)
    """Texts on either side of a membership attack, at most (suites privacy and full)."""
    margin: float = Field(0.05, gt=0)
    """Equivalence margin, in each measure's own unit (shares and nats): a smaller difference counts as none. Name it
    before you look."""
    utility_tasks: tuple[str, ...] = ()
    """Utility tasks through lm-eval (suites paper and full); none named: all seven of the paper."""
    utility_limit: int | None = Field(None, ge=1)
    """Items per utility task, evenly spread; a number measured with a limit is not comparable with published ones."""
    utility_at_steps: bool = True
    """Utility tasks along the fine-tune too, as in the paper's table (`forgetkit run` with suite paper or full)."""
    tofu_forget: Literal["forget01", "forget05", "forget10"] = "forget10"
    """TOFU's forget set."""
    tofu_template: str = "Question: {question}\nAnswer:"
    """What stands before an answer in TOFU; chat models need the one they were trained with."""
    muse_corpus: Literal["news", "books"] = "news"
    """MUSE's corpus."""
    muse_scalability: tuple[str, ...] = ()
    """Models that unlearned 1, 2, ... folds of MUSE's forget set at once, in this order."""
    muse_sustainability: tuple[str, ...] = ()
    """Models after the 1st, 2nd, ... of MUSE's successive requests, in this order."""


class ReportSettings(Section):
    """The HTML page."""

    title: str = "forgetkit report"
    """Heading of the page."""
    redact: bool = False
    """Leave out every passage of target text and every completion (hazardous or confidential targets)."""


class Settings(Section):
    """All sections, as one YAML file holds them."""

    seed: int = 0
    """Seed of every random choice."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0 = all cores, resolved and recorded. Bit-exact repetition needs the same number."""
    world_size: int = Field(1, ge=1)
    """Processes that share the run, as `torchrun` starts them (docs/scale.md). Must be what the launcher made."""
    model: ModelSettings = ModelSettings()
    corpus: CorpusSettings = CorpusSettings()
    reinforce: ReinforceSettings = ReinforceSettings()
    anchors: AnchorSettings = AnchorSettings()
    relabel: RelabelSettings = RelabelSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
