"""One arm of the speed benchmark in one fresh process: three stages and generation, timed; results as JSON.

python benchmarks/speed_arms.py ARM POINT OUT      (benchmarks/speed.py starts these)

    O  forgetkit, through its public functions
    N  a plain Hugging Face script after the paper: two models, full logits, Trainer; O's dtype and batch
    D  the same script at its own defaults: fp32, batch 8
    W  a MUSE-style wrapper of two models (arXiv 2407.06460); trains as its scripts do, bf16 without masters

Every arm reads the same blocks, translations and alignments, starts from the same checkpoint and labels with the same
reinforced one. A stage's time holds loading and saving its models.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from benchmarks.limits import flops_per_token, gemm_peak, peak_rss, stage_peak
from forgetkit import finetune, reinforce
from forgetkit.anchors.dictionary import Dictionary
from forgetkit.core import models
from forgetkit.core.batches import epoch_order, pad_blocks
from forgetkit.core.progress import Progress
from forgetkit.core.provenance import pin_threads
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.forward import generate
from forgetkit.relabel.build import Labeller, PreparedBlock, plain_blocks, prepare_blocks, write_labels
from forgetkit.relabel.consistency import Status
from forgetkit.relabel.shards import LabelShards
from forgetkit.settings import FinetuneSettings, ModelSettings, ReinforceSettings, RelabelSettings

ALPHA, SEED, RATE, PAD = 5.0, 0, 1e-4, 0
PAPER = RelabelSettings(
    dictionaries=1,
    alpha=ALPHA,
    contrast=0.0,
    prior=0.0,
    space="logits",
    temperature=1.0,
    labels="hard",
    top_k=1,
    penalise_seen_counterparts=5.0,
    suppress_unseen_anchors=0.0,
    suppress_text=0.0,
    mask_inside_anchors=True,
    retain="none",
)
"""The paper's labels: hard, so that arms can be compared position by position."""
TRAIN: dict[str, Any] = {
    "epochs": 1,
    "learning_rate": RATE,
    "schedule": "constant",
    "warmup_steps": 0,
    "batch_blocks": 4,
    "accumulation": 2,
}
"""forgetkit's default batch: 8 blocks per step, as the Trainer's default, in two halves."""
LABEL_BATCH = 8
PROMPT, NEW = 64, 32
PROMPTS = {"O": 16, "N": 8, "D": 8, "W": 2}


class Point:
    """What `speed.prepare` wrote for one model size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.reinforced = folder / "model", folder / "reinforced" / "model"
        self.corpus = BlockedCorpus.load(folder / "corpus")
        self.order = [int(i) for i in epoch_order(len(self.corpus), 1, SEED)]

    def blocks(self) -> list[PreparedBlock]:
        """The blocks, translated and aligned; not timed."""
        tokenizer = models.load_tokenizer(self.model)
        return list(prepare_blocks(self.corpus, Dictionary.load(self.folder / "anchors.yaml"), tokenizer, PAPER))


# ---- O: forgetkit ----


def own(point: Point, blocks: list[PreparedBlock], out: Path, stage: Callable[..., Any]) -> dict[str, Any]:
    """The three stages as `pipeline.py` calls them."""
    cpu = ModelSettings(device="cpu")
    with stage("reinforce"):
        reinforce.run(point.model, point.corpus, ReinforceSettings(**TRAIN), cpu, out / "2", work=out / "2w", seed=SEED)
    with stage("label"):
        labeller = Labeller(
            models.load_model(point.model, cpu),
            models.load_model(point.reinforced, cpu),
            PAPER,
            pad_id=PAD,
            bos_id=point.corpus.bos_id,
        )
        with Progress("labels", len(blocks), quiet=True) as bar:
            write_labels(iter(blocks), len(blocks), labeller, out / "4", progress=bar)
        del labeller
    labels = LabelShards(out / "4")
    with stage("finetune"):
        finetune.run(
            str(point.model),
            finetune.LabelledText(point.corpus, labels),
            None,
            FinetuneSettings(**TRAIN, anchor_weight=1.0, retain_ratio=0.0, snapshots=0),
            cpu,
            out / "5",
            work=out / "5w",
            seed=SEED,
            pad_id=PAD,
        )
    return {
        "labels": [np.where(b.status <= Status.INNER, b.ids[:, 0].astype(np.int64), -100) for b in _each(labels)],
        "losses": {
            name: _losses(out / folder / "log.jsonl") for name, folder in (("reinforce", "2"), ("finetune", "5"))
        },
    }


def _each(labels: LabelShards) -> Iterator[Any]:
    return (labels[i] for i in range(len(labels)))


def _losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


# ---- N, D, W: what a user would write ----


def load(path: Path, dtype: torch.dtype) -> Any:
    """A model as every script loads it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval()


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad on the right: ids with the pad token, labels with -100."""
    ids, valid = pad_blocks([row["input_ids"] for row in rows], PAD)
    labels = torch.full_like(ids, -100)
    for line, row in zip(labels, rows, strict=True):
        line[: len(row["labels"])] = torch.from_numpy(row["labels"].astype(np.int64))
    return {"input_ids": ids, "attention_mask": valid.long(), "labels": labels}


def hugging_face_train(model: Any, rows: Sequence[dict[str, Any]], out: Path, arm: str) -> list[float]:
    """`Trainer` with its own loss; the loss of every step, nats per token."""
    batch, accumulation = (8, 1) if arm == "D" else (TRAIN["batch_blocks"], TRAIN["accumulation"])
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        bf16=arm == "N",
        use_cpu=True,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        seed=SEED,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    model.train()
    trainer.train()
    model.save_pretrained(out / "model")
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def with_bos(ids: np.ndarray, bos: int | None) -> np.ndarray:
    """`ids` as a user's tokenizer call would give them."""
    return ids if bos is None else np.concatenate([[bos], ids])


def script_labels(baseline: Any, reinforced: Any, blocks: Sequence[PreparedBlock], bos: int | None) -> list[np.ndarray]:
    """Labels as the paper's equation is written: both models' full logits, combined, argmax over everything."""
    front, found = 0 if bos is None else 1, []
    for low in range(0, len(blocks), LABEL_BATCH):
        some = blocks[low : low + LABEL_BATCH]
        translated, seen = pad_blocks([with_bos(b.target_ids, bos) for b in some], PAD)
        original, real = pad_blocks([with_bos(b.ids, bos) for b in some], PAD)
        with torch.no_grad():
            v_b = baseline(input_ids=translated, attention_mask=seen.long()).logits[:, front:].float()
            v_r = reinforced(input_ids=original, attention_mask=real.long()).logits[:, front:].float()
            source = torch.zeros(len(some), v_r.shape[1], dtype=torch.long)
            for row, block in enumerate(some):
                source[row, : len(block.ids)] = torch.from_numpy(np.maximum(block.plan.source, 0)).long()
            v_b = torch.stack([v[s] for v, s in zip(v_b, source, strict=True)])
            generic = v_b - ALPHA * torch.relu(v_r - v_b)
            lower(generic, some)
            chosen = generic.argmax(-1)
        found += [
            np.where(b.plan.status <= Status.INNER, chosen[i, : len(b.ids)].numpy(), -100) for i, b in enumerate(some)
        ]
    return found


def lower(generic: Tensor, blocks: Sequence[PreparedBlock]) -> None:
    """Rule 2, in place: counterparts of seen anchors."""
    for row, block in enumerate(blocks):
        plan = block.plan
        for token, start, end, amount in zip(
            plan.lowered_ids, plan.lowered_from, plan.lowered_until, plan.lowered_by, strict=True
        ):
            generic[row, int(start) : int(end), int(token)] -= float(amount)


class Wrapper(torch.nn.Module):
    """Two whole models behind one `forward` that combines their full logits; no cache, as in MUSE's."""

    def __init__(self, baseline: Any, reinforced: Any) -> None:
        super().__init__()
        self.baseline, self.reinforced = baseline, reinforced

    def forward(self, translated: Tensor, original: Tensor, source: Tensor) -> Tensor:
        """Generic logits [B, T, V] in the models' dtype."""
        v_b = self.baseline(input_ids=translated, use_cache=False).logits
        v_r = self.reinforced(input_ids=original, use_cache=False).logits
        v_b = torch.gather(v_b, 1, source[..., None].expand(-1, -1, v_b.shape[-1]))
        return v_b - ALPHA * torch.relu(v_r - v_b)


def wrapper_labels(both: Wrapper, blocks: Sequence[PreparedBlock], bos: int | None) -> list[np.ndarray]:
    """Argmax of the wrapper's logits."""
    front, found = 0 if bos is None else 1, []
    for low in range(0, len(blocks), LABEL_BATCH):
        some = blocks[low : low + LABEL_BATCH]
        translated, _ = pad_blocks([with_bos(b.target_ids, bos) for b in some], PAD)
        original, _ = pad_blocks([with_bos(b.ids, bos) for b in some], PAD)
        source = torch.zeros_like(original)
        for row, block in enumerate(some):
            source[row, front : front + len(block.ids)] = torch.from_numpy(np.maximum(block.plan.source, 0) + front)
        with torch.no_grad():
            generic = both(translated, original, source)[:, front:]
            lower(generic, some)
            chosen = generic.argmax(-1)
        found += [
            np.where(b.plan.status <= Status.INNER, chosen[i, : len(b.ids)].numpy(), -100) for i, b in enumerate(some)
        ]
    return found


def script(arm: str, point: Point, blocks: list[PreparedBlock], out: Path, stage: Callable[..., Any]) -> dict[str, Any]:
    """The three stages of N, D or W."""
    bos, ids = point.corpus.bos_id, [with_bos(b.ids, point.corpus.bos_id) for b in blocks]
    # N trains fp32 weights under bf16 autocast (`Trainer(bf16=True)`), W bf16 weights as MUSE's scripts do.
    train_dtype = torch.bfloat16 if arm == "W" else torch.float32
    label_dtype = torch.float32 if arm == "D" else torch.bfloat16
    with stage("reinforce"):
        rows = [{"input_ids": ids[i], "labels": ids[i]} for i in point.order]
        first = hugging_face_train(load(point.model, train_dtype), rows, out / "reinforced", arm)
    with stage("label"):
        pair = load(point.model, label_dtype), load(point.reinforced, label_dtype)
        labels = wrapper_labels(Wrapper(*pair), blocks, bos) if arm == "W" else script_labels(*pair, blocks, bos)
        np.save(out / "labels.npy", np.concatenate(labels))
        del pair
    with stage("finetune"):
        # The model shifts labels itself: the label of position i stands at i + 1.
        front = [-100] * (1 if bos is None else 2)
        rows = [{"input_ids": ids[i], "labels": np.concatenate([front, labels[i][:-1]])} for i in point.order]
        last = hugging_face_train(load(point.model, train_dtype), rows, out / "unlearned", arm)
    return {"labels": labels, "losses": {"reinforce": first, "finetune": last}}


# ---- generation ----


def generation(arm: str, point: Point) -> float:
    """Greedy tokens per second: O batched with a cache, N and D `generate` one by one, W both models, no cache."""
    count = PROMPTS[arm]
    prompts = torch.from_numpy(point.corpus.ids[: count * PROMPT].astype(np.int64)).view(count, PROMPT)
    dtype = torch.float32 if arm == "D" else torch.bfloat16
    model = models.load_model(point.model, ModelSettings(device="cpu")) if arm == "O" else load(point.model, dtype)
    second = load(point.reinforced, dtype) if arm == "W" else None
    began = time.perf_counter()
    with torch.no_grad():
        if arm == "O":
            generate(model, prompts, NEW)
        elif second is None:
            for prompt in prompts:
                model.generate(
                    prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=NEW, min_new_tokens=NEW,
                    do_sample=False, pad_token_id=PAD,
                )  # fmt: skip
        else:
            both = Wrapper(model, second)
            for prompt in prompts:
                text = prompt[None]
                for _ in range(NEW):
                    v = both(text, text, torch.arange(text.shape[1])[None])
                    text = torch.cat([text, v[:, -1:].argmax(-1)], 1)
    return count * NEW / (time.perf_counter() - began)


# ---- checks and growth ----


def verify(point: Point) -> dict[str, Any]:
    """fp32 labels of O, N and W on the first blocks: equal, except ties within the fp32 logits' own rounding."""
    blocks, bos = point.blocks()[:LABEL_BATCH], point.corpus.bos_id
    pair = load(point.model, torch.float32), load(point.reinforced, torch.float32)
    double = load(point.model, torch.float64), load(point.reinforced, torch.float64)
    made = {
        "O": [
            np.where(b.status <= Status.INNER, b.ids[:, 0].astype(np.int64), -100)
            for b in Labeller(*pair, PAPER, pad_id=PAD, bos_id=bos).label(blocks)
        ],
        "N": script_labels(*pair, blocks, bos),
        "W": wrapper_labels(Wrapper(*pair), blocks, bos),
    }
    result: dict[str, Any] = {"positions": int(sum((b.plan.status <= Status.INNER).sum() for b in blocks))}
    for arm in ("N", "W"):
        places = [(i, p) for i in range(len(blocks)) for p in np.flatnonzero(made["O"][i] != made[arm][i])]
        for i, p in places:
            gap, bound = _gap(pair, double, blocks[i], int(p), (made["O"][i][p], made[arm][i][p]), bos)
            if gap > bound:
                raise SystemExit(f"label of block {i} position {p} differs in O and {arm}: gap {gap}, rounding {bound}")
        result[f"ties_{arm}"] = len(places)
    return result


def _gap(
    pair: tuple[Any, Any], double: tuple[Any, Any], block: PreparedBlock, p: int, two: tuple[int, int], bos: int | None
) -> tuple[float, float]:
    """How far apart two labels are in fp64, and how far fp32 rounding can move them."""
    front, values, error = 0 if bos is None else 1, [], 0.0
    for single, exact, ids, at in (
        (pair[0], double[0], block.target_ids, int(block.plan.source[p])),
        (pair[1], double[1], block.ids, p),
    ):
        row = torch.from_numpy(with_bos(ids, bos).astype(np.int64))[None]
        with torch.no_grad():
            v, v32 = exact(input_ids=row).logits[0, front + at], single(input_ids=row).logits[0, front + at]
        values.append(v)
        error = max(error, float((v - v32.double()).abs().max()))
    generic = (values[0] - ALPHA * torch.relu(values[1] - values[0]))[None, None]
    one = PreparedBlock(block.ids[:1], block.target_ids, block.plan)
    full = torch.zeros(1, len(block.ids), generic.shape[-1], dtype=torch.float64)
    full[0, p] = generic[0, 0]
    lower(full, [one])
    # Either label's value moves by (1 + 2 alpha) times the logits' error at most; batches may double it.
    return float((full[0, p, two[0]] - full[0, p, two[1]]).abs()), 4 * (1 + 2 * ALPHA) * error


def growth(tokens: int, out: Path) -> dict[str, Any]:
    """O's labelling of `tokens` synthetic tokens with a tiny model: seconds, peak memory, bytes on disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    pair = [LlamaForCausalLM(config).bfloat16().eval() for _ in range(2)]
    generator, count = np.random.default_rng(SEED), -(-tokens // 512)

    def blocks() -> Iterator[PreparedBlock]:
        for _ in range(count):
            ids = generator.integers(0, 512, 512).astype(np.int32)
            bounds = np.array([[0, 0, 512]])
            yield from plain_blocks(BlockedCorpus((), ids, np.zeros((512, 2), np.int32), bounds, None, 512))

    labeller = Labeller(*pair, PAPER, pad_id=PAD, bos_id=None)
    before = stage_peak(reset=True)
    began = time.perf_counter()
    with Progress("labels", count, quiet=True) as bar:
        told = write_labels(blocks(), count, labeller, out / "labels", progress=bar)
    return {
        "tokens": tokens,
        "seconds": time.perf_counter() - began,
        "before": before,
        "peak": stage_peak(),
        "bytes": told["bytes"],
    }


# ---- one process ----


def measure(arm: str, point: Point, out: Path) -> dict[str, Any]:
    """All stages of one arm."""
    blocks = point.blocks()
    base, seconds, peaks = stage_peak(), dict[str, float](), dict[str, int]()

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        print(f"  {arm}: {name}", flush=True)
        stage_peak(reset=True)
        began = time.perf_counter()
        yield
        seconds[name], peaks[name] = time.perf_counter() - began, stage_peak()

    made = own(point, blocks, out, stage) if arm == "O" else script(arm, point, blocks, out, stage)
    top = max([peak_rss(), *peaks.values()])
    disk = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"  {arm}: generation", flush=True)
    labels = np.concatenate(made["labels"])
    np.save(out / "all_labels.npy", labels)
    return {
        "seconds": seconds,
        "tokens": point.corpus.n_tokens,
        "labelled": int((labels >= 0).sum()),
        "rss": top,
        "rss_before": base,
        "rss_stage": peaks,
        "disk": disk,
        "losses": made["losses"],
        "generation": generation(arm, point),
    }


def main() -> None:
    """Run what the command line names and write its JSON."""
    what, place, out, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    out.mkdir(parents=True, exist_ok=True)
    pin_threads(threads)
    torch.manual_seed(SEED)
    told: dict[str, Any]
    if what == "verify":
        told = verify(Point(place))
    elif what == "gemm":
        point = Point(place)
        low, full = load(point.model, torch.bfloat16), load(point.model, torch.float32)
        needed = flops_per_token(low, point.corpus.block_tokens)
        told = {"bf16": gemm_peak(low), "fp32": gemm_peak(full), "body": needed.body, "head": needed.head}
    elif what.startswith("growth-"):
        told = growth(int(what.removeprefix("growth-")), out)
    else:
        told = measure(what, Point(place), out)
    (out / "result.json").write_text(json.dumps(told, allow_nan=False))


if __name__ == "__main__":
    main()
