"""Components 2b-2d of arXiv 2310.02238 over a whole corpus: blocks in, label shards out.

Full-vocabulary logits exist for `chunk_positions` rows at a time, and only for rows that get a label; everything
else is hidden states of one batch. Shards are written one by one, so a killed run goes on where it stopped. Several
ranks take whole shards each, cut as in one process: the files are the same bytes for any number of ranks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forgetkit.anchors.dictionary import Dictionary
from forgetkit.anchors.matcher import Match, Matcher
from forgetkit.anchors.translate import align, translate
from forgetkit.core import distributed
from forgetkit.core.batches import pad_blocks
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.heads import SplitHead
from forgetkit.core.progress import Progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.corpus.tokenise import encode
from forgetkit.relabel.combine import (
    TopK,
    average,
    generic_logits,
    hard_labels,
    in_space,
    log_frequencies,
    salience,
    shift,
    soft_labels,
)
from forgetkit.relabel.consistency import (
    LabelPlan,
    Role,
    Status,
    plan_block,
    telltale_tokens,
)
from forgetkit.relabel.shards import INDEX, BlockLabels, LabelShards, id_type, shard_file, write_index, write_shard
from forgetkit.settings import RelabelSettings

BLOCKS_PER_SHARD = 256
NEAR_ANCHOR, LARGEST_GAINS = 5, 16
"""What `relabel.subtract` means by near (tokens) and by largest (tokens of the vocabulary)."""


@dataclass(frozen=True)
class PreparedBlock:
    """One block, translated, aligned and planned."""

    ids: NDArray[np.int32]
    """Original token ids; [n]."""
    target_ids: NDArray[np.int32]
    """Token ids of the translation; [m]."""
    plan: LabelPlan
    others: tuple[PreparedBlock, ...] = ()
    """The block under further dictionaries, same `plan.status`; their predictions are averaged with its own."""


def own_blocks(count: int) -> range:
    """The blocks whose labels this rank makes, of 0..count-1: whole shards, contiguous; all of them when alone."""
    shards = distributed.share(-(-count // BLOCKS_PER_SHARD))
    return range(shards.start * BLOCKS_PER_SHARD, min(shards.stop * BLOCKS_PER_SHARD, count))


def prepare_blocks(
    corpus: BlockedCorpus,
    dictionary: Dictionary,
    tokenizer: Any,
    settings: RelabelSettings,
    indices: range | None = None,
) -> Iterator[PreparedBlock]:
    """Translate, tokenise and align block after block (ALGORITHM 2b), in the corpus' order; `indices`: only these."""
    matchers = [Matcher(version) for version in dictionary.versions(settings.dictionaries)]
    telltale = telltale_tokens(corpus, matchers[0]) if settings.suppress_unseen_anchors > 0 else None
    document, matches = -1, list[list[Match]]()
    for index in indices if indices is not None else range(len(corpus)):
        block = corpus[index]
        if block.document != document:
            document = block.document
            matches = [matcher.find(corpus.documents[document].text) for matcher in matchers]
        versions = []
        for found in matches:
            translation = translate(corpus.documents[document].text, found, block.char_start, block.char_end)
            target_ids, target_offsets = encode(translation.text, tokenizer)
            alignment = align(block.offsets, block.ids, translation, block.char_start, target_offsets, target_ids)
            versions.append(PreparedBlock(block.ids, target_ids, plan_block(alignment, target_ids, settings, telltale)))
        yield combined(versions)


def combined(versions: Sequence[PreparedBlock]) -> PreparedBlock:
    """One block under several dictionaries; a position gets a label only where it does under all of them."""
    status = np.maximum.reduce([version.plan.status for version in versions])
    first, *others = (replace(version, plan=replace(version.plan, status=status)) for version in versions)
    return replace(first, others=tuple(others))


def plain_blocks(corpus: BlockedCorpus, indices: range | None = None) -> Iterator[PreparedBlock]:
    """Blocks as they are, every position labelled by itself: retain text needs no dictionary; `indices`: only these."""
    none, nothing = np.empty(0, np.int32), np.empty(0, np.float32)
    for index in indices if indices is not None else range(len(corpus)):
        ids = corpus[index].ids
        status = np.full(len(ids), Status.LABEL, np.uint8)
        status[-1] = Status.NO_NEXT
        source = np.where(status == Status.LABEL, np.arange(len(ids)), -1).astype(np.int32)
        plan = LabelPlan(status, np.full(len(ids), Role.OTHER, np.uint8), source, none, none, none, nothing)
        yield PreparedBlock(ids, ids, plan)


def near_anchors(role: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Positions whose next token is an anchor's or lies within `NEAR_ANCHOR` tokens of one; bool [n]."""
    anchor = (role != Role.OTHER).astype(np.int64)
    return np.convolve(anchor, np.ones(2 * NEAR_ANCHOR + 1, np.int64))[NEAR_ANCHOR:][: len(role)] > 0


class Labeller:
    """Turns prepared blocks into labels with one or two models.

    common: the retain text, whose token frequencies are the prior; with None there is no prior.
    """

    def __init__(
        self,
        baseline: Any,
        reinforced: Any | None,
        settings: RelabelSettings,
        *,
        pad_id: int,
        bos_id: int | None,
        anchor_tokens: NDArray[np.int32] | None = None,
        common: BlockedCorpus | None = None,
    ) -> None:
        self.baseline = SplitHead(baseline)
        self.reinforced = SplitHead(reinforced) if reinforced is not None and settings.uses_reinforced else None
        self.contrasted = self.reinforced is not None and settings.contrast > 0
        self.settings, self.pad_id, self.bos_id = settings, pad_id, bos_id
        self.vocab_size = int(baseline.get_output_embeddings().weight.shape[0])
        self.device = baseline.get_input_embeddings().weight.device
        self.prior_V: Tensor | None = None
        if common is not None and settings.prior > 0:
            ids = np.concatenate([block.ids for block in common])
            self.prior_V = log_frequencies(ids, self.vocab_size).to(self.device)
        self.subtract_V: Tensor | None = None
        self.largest = LARGEST_GAINS if settings.subtract == "largest_gains" else None
        if settings.subtract == "anchor_tokens" and anchor_tokens is not None:
            self.subtract_V = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
            self.subtract_V[torch.from_numpy(anchor_tokens).long()] = True

    def _hidden(self, model: SplitHead, blocks: Sequence[NDArray[np.int32]]) -> Tensor:
        """Hidden states [B, T, H] without the BOS position."""
        input_ids, _ = pad_blocks(blocks, self.pad_id, self.bos_id)
        states = model.hidden(input_ids.to(self.device))
        return states if self.bos_id is None else states[:, 1:]

    @torch.inference_mode()
    def label(self, blocks: Sequence[PreparedBlock]) -> list[BlockLabels]:
        """Labels of a batch of blocks."""
        wanted = [np.flatnonzero(b.plan.status <= Status.INNER) for b in blocks]
        parts: list[TopK] = []
        for _, _, v_NV, salient_NV in self.predictions(blocks):
            if self.settings.labels == "hard":
                parts.append(hard_labels(v_NV))
            else:
                parts.append(soft_labels(v_NV, self.settings.top_k, salient_NV))
        return self._scatter(blocks, wanted, parts)

    @torch.inference_mode()
    def predictions(
        self, blocks: Sequence[PreparedBlock]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Tensor | None]]:
        """Generic predictions at every position that gets a label, `chunk_positions` rows at a time, in order.

        Yields (block in the batch [N], position in the block [N], generic logits [N, V], `salience` [N, V] or None for
        hard labels); fp32. With several dictionaries `average` has made one of them.
        """
        wanted = [np.flatnonzero(b.plan.status <= Status.INNER) for b in blocks]
        row_block = np.repeat(np.arange(len(blocks)), [len(w) for w in wanted])
        position = np.concatenate([*wanted, np.empty(0, np.int64)]).astype(np.int64)
        if not len(position):
            return
        versions = [blocks, *zip(*(b.others for b in blocks), strict=True)]
        translated = [self._hidden(self.baseline, [b.target_ids for b in version]) for version in versions]
        original = self._original(blocks)
        raised = self._hidden(self.reinforced, [b.ids for b in blocks]) if self.reinforced is not None else None
        step = self.settings.chunk_positions
        for low in range(0, len(position), step):
            which, at = row_block[low : low + step], position[low : low + step]
            raised_NV = self._rows(self.reinforced, raised, which, at)
            own_NV = self._rows(self.baseline, original, which, at) if self.contrasted else None
            shift_NV = shift(own_NV, raised_NV, self.settings.contrast, self.prior_V, self.settings.prior)
            predicted = (
                self._predict_rows(version, which, at, states, original, raised_NV, shift_NV)
                for version, states in zip(versions, translated, strict=True)
            )
            yield which, at, *average(predicted)

    def _original(self, blocks: Sequence[PreparedBlock]) -> Tensor | None:
        """The baseline on the original text, only where something asks for it."""
        if self.contrasted or any((b.plan.status == Status.INNER).any() for b in blocks):
            return self._hidden(self.baseline, [b.ids for b in blocks])
        return None

    def _rows(
        self,
        head: SplitHead | None,
        states_BTH: Tensor | None,
        row_block: NDArray[np.int64],
        position: NDArray[np.int64],
    ) -> Tensor | None:
        """A model's values [N, V] at N chosen rows of its hidden states; None without them."""
        if head is None or states_BTH is None:
            return None
        states_NH = states_BTH[torch.from_numpy(row_block), torch.from_numpy(position)]
        return in_space(head.logits(states_NH), self.settings.space)

    def _predict_rows(
        self,
        blocks: Sequence[PreparedBlock],
        row_block: NDArray[np.int64],
        position: NDArray[np.int64],
        translated_BTH: Tensor,
        original_BTH: Tensor | None,
        raised_NV: Tensor | None,
        shift_NV: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Generic values and salience of N chosen rows (block in the batch, position in the block)."""
        source = np.array([blocks[b].plan.source[p] for b, p in zip(row_block, position, strict=True)])
        inner = source < 0
        block_N, position_N = torch.from_numpy(row_block), torch.from_numpy(position)
        hidden_NH = translated_BTH[block_N, torch.from_numpy(np.maximum(source, 0))]
        if original_BTH is not None:
            inner_N = torch.from_numpy(inner)
            hidden_NH[inner_N] = original_BTH[block_N[inner_N], position_N[inner_N]]
        base_NV = in_space(self.baseline.logits(hidden_NH), self.settings.space)
        v_NV = generic_logits(
            base_NV,
            raised_NV,
            alpha=self.settings.alpha,
            subtract_NV=self._near(blocks, row_block, position)
            if self.settings.subtract == "near_anchors"
            else self.subtract_V,
            largest=self.largest,
        )
        if self.settings.temperature != 1:
            v_NV.div_(self.settings.temperature)
        if shift_NV is not None:
            v_NV.add_(shift_NV)
        self._lower(v_NV, blocks, row_block, position, inner)
        if not torch.isfinite(v_NV.sum()):  # one pass: NaN and infinity survive a sum
            raise ForgetkitError(
                "the models' logits are not finite",
                where="labels",
                remedy="use model.dtype=float32, or a lower reinforce.learning_rate",
            )
        if self.settings.labels == "hard":
            return v_NV, None
        return v_NV, salience(base_NV, raised_NV, self.settings.space)

    def _near(
        self, blocks: Sequence[PreparedBlock], row_block: NDArray[np.int64], position: NDArray[np.int64]
    ) -> Tensor:
        """Whether each row's next token lies within `NEAR_ANCHOR` tokens of an anchor; bool [N, 1]."""
        near = np.zeros(len(position), bool)
        for b in np.unique(row_block):
            of_block = row_block == b
            near[of_block] = near_anchors(blocks[b].plan.role)[position[of_block]]
        return torch.from_numpy(near[:, None]).to(self.device)

    def _lower(
        self,
        v_NV: Tensor,
        blocks: Sequence[PreparedBlock],
        row_block: NDArray[np.int64],
        position: NDArray[np.int64],
        inner: NDArray[np.bool_],
    ) -> None:
        """Rule 2, unseen anchors, the text's own next token, and the anchor's at inner positions; in place.

        With a prior no token is lowered below its share of common text: a model that never read the target is no
        surer than that.
        """
        rows: list[NDArray[np.int64]] = []
        ids: list[NDArray[np.int32]] = []
        amounts: list[NDArray[np.float32]] = []
        for b in np.unique(row_block):
            plan = blocks[b].plan
            of_block = np.flatnonzero(row_block == b)
            at = position[of_block][:, None]
            hit, which = np.nonzero((at >= plan.lowered_from) & (at < plan.lowered_until))
            rows.append(of_block[hit])
            ids.append(plan.lowered_ids[which])
            amounts.append(plan.lowered_by[which])
        if self.settings.suppress_text > 0:
            plain = np.array([blocks[b].plan.role[p] == Role.OTHER for b, p in zip(row_block, position, strict=True)])
            at_text = np.flatnonzero(plain)
            rows.append(at_text)
            ids.append(np.array([blocks[row_block[r]].ids[position[r] + 1] for r in at_text], np.int32))
            amounts.append(np.full(len(at_text), self.settings.suppress_text, np.float32))
        if inner.any():
            at_inner = np.flatnonzero(inner)
            rows.append(at_inner)
            ids.append(np.array([blocks[row_block[r]].ids[position[r] + 1] for r in at_inner], np.int32))
            amounts.append(np.full(len(at_inner), self.settings.inner_suppression, np.float32))
        # An id can be lowered for two reasons at one position: both count.
        places = np.concatenate(rows) * self.vocab_size + np.concatenate(ids)
        flat, back = np.unique(places, return_inverse=True)
        by = torch.from_numpy(np.bincount(back, np.concatenate(amounts)).astype(np.float32)).to(self.device)
        row_P, id_P = (torch.from_numpy(part).to(self.device) for part in np.divmod(flat, self.vocab_size))
        if self.prior_V is None:
            v_NV[row_P, id_P] -= by
            return
        lowest_P = self.prior_V[id_P] + torch.logsumexp(v_NV, dim=-1)[row_P]
        before_P = v_NV[row_P, id_P]
        v_NV[row_P, id_P] = torch.maximum(before_P - by, torch.minimum(before_P, lowest_P))

    def _scatter(
        self,
        blocks: Sequence[PreparedBlock],
        wanted: Sequence[NDArray[np.int64]],
        parts: Sequence[TopK],
    ) -> list[BlockLabels]:
        width = 1 if self.settings.labels == "hard" else min(self.settings.top_k, self.vocab_size)
        kind = id_type(self.vocab_size)
        ids = np.concatenate([np.empty((0, width), kind), *(p.ids_NK.cpu().numpy().astype(kind) for p in parts)])
        logs = np.concatenate(
            [
                np.empty((0, width), np.float16),
                *(p.log_probs_NK.cpu().numpy().astype(np.float16) for p in parts),
            ]
        )
        rest = np.concatenate(
            [np.empty(0, np.float16), *(p.log_rest_N.cpu().numpy().astype(np.float16) for p in parts)]
        )
        out, low = [], 0
        for block, rows in zip(blocks, wanted, strict=True):
            n, high = len(block.ids), low + len(rows)
            labels = BlockLabels(
                status=block.plan.status,
                role=block.plan.role,
                ids=np.zeros((n, width), kind),
                log_probs=np.zeros((n, width), np.float16),
                log_rest=np.zeros(n, np.float16),
            )
            labels.ids[rows], labels.log_probs[rows], labels.log_rest[rows] = (
                ids[low:high],
                logs[low:high],
                rest[low:high],
            )
            out.append(labels)
            low = high
        return out


def text_labels(block: PreparedBlock, vocab_size: int) -> BlockLabels:
    """Hard labels that are the text itself: plain language modelling, as every position's next token."""
    n = len(block.ids)
    ids = np.zeros((n, 1), id_type(vocab_size))
    ids[:-1, 0] = block.ids[1:]
    return BlockLabels(
        block.plan.status, block.plan.role, ids, np.zeros((n, 1), np.float16), np.full(n, -np.inf, np.float16)
    )


def anchor_token_ids(dictionary: Dictionary, tokenizer: Any) -> NDArray[np.int32]:
    """Ids of every token with which a kept anchor is written, after a space or not; sorted int32."""
    found: set[int] = set()
    for anchor in dictionary.kept:
        for text in (anchor.term, " " + anchor.term):
            found.update(int(i) for i in encode(text, tokenizer)[0])
    return np.array(sorted(found), np.int32)


def write_labels(
    prepared: Iterator[PreparedBlock],
    count: int,
    labeller: Labeller,
    folder: Path,
    *,
    text_only: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Label a text of `count` blocks into shards under `folder`; existing shards are kept (resume).

    Args:
        prepared: the blocks `own_blocks(count)`, in order; on several ranks the other ranks label the others.

    Returns:
        counts of positions by status over all blocks, and bytes on disk; the same on every rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"relabel": labeller.settings.model_dump(mode="json"), "vocab_size": labeller.vocab_size}
    statuses: Counter[str] = Counter()
    batch = labeller.settings.batch_blocks
    shards = {first: min(BLOCKS_PER_SHARD, count - first) for first in range(0, count, BLOCKS_PER_SHARD)}
    mine = own_blocks(count)
    for first in range(mine.start, mine.stop, BLOCKS_PER_SHARD):
        size = shards[first]
        blocks = [next(prepared) for _ in range(size)]
        for block in blocks:
            for value, number in zip(*np.unique(block.plan.status, return_counts=True), strict=True):
                statuses[Status(int(value)).name.lower()] += int(number)
        if shard_file(folder, first).exists():
            progress.advance(size, note="already labelled")
            continue
        labels: list[BlockLabels] = []
        for low in range(0, size, batch):
            some = blocks[low : low + batch]
            labels += [text_labels(b, labeller.vocab_size) for b in some] if text_only else labeller.label(some)
            progress.advance(len(some))
        write_shard(folder, first, labels, metadata)
    statuses = sum(distributed.gather(statuses), Counter())  # every rank's shards are on disk after this
    if distributed.is_main():
        write_index(folder, shards, metadata)
    distributed.barrier()
    size_bytes = sum(path.stat().st_size for path in (folder / INDEX, *(shard_file(folder, first) for first in shards)))
    return {"blocks": count, "positions": dict(sorted(statuses.items())), "bytes": size_bytes}


def make_labeller(
    baseline: Any,
    reinforced: Any | None,
    dictionary: Dictionary,
    tokenizer: Any,
    settings: RelabelSettings,
    bos_id: int | None,
    common: BlockedCorpus | None,
) -> Labeller:
    """The labeller of a target text; `common`: the text whose token frequencies are the prior."""
    tokens = anchor_token_ids(dictionary, tokenizer) if settings.subtract == "anchor_tokens" else None
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Labeller(baseline, reinforced, settings, pad_id=pad_id, bos_id=bos_id, anchor_tokens=tokens, common=common)


def build_labels(
    target: BlockedCorpus,
    retain: BlockedCorpus | None,
    dictionary: Dictionary,
    tokenizer: Any,
    baseline: Any,
    reinforced: Any | None,
    settings: RelabelSettings,
    out: Path,
    *,
    retain_blocks: int | None = None,
) -> dict[str, Any]:
    """Write `out/target/` and, when there is retain text, `out/retain/` label shards and `out/summary.json`.

    On several ranks every one calls this, with an `out` that all can reach.

    Args:
        retain_blocks: label only the first so many retain blocks (no more are used in fine-tuning).

    Raises:
        ForgetkitError: no position of the target got a label (everything is an anchor), or logits not finite.
    """
    with_retain = retain is not None and settings.retain != "none"
    n_retain = min(len(retain), retain_blocks or len(retain)) if retain is not None and with_retain else 0
    summary: dict[str, Any] = {}
    with Progress("labels", len(own_blocks(len(target))) + len(own_blocks(n_retain)), "blocks") as progress:
        labeller = make_labeller(baseline, reinforced, dictionary, tokenizer, settings, target.bos_id, retain)
        prepared = prepare_blocks(target, dictionary, tokenizer, settings, own_blocks(len(target)))
        summary["target"] = write_labels(prepared, len(target), labeller, out / "target", progress=progress)
        labelled = sum(summary["target"]["positions"].get(k, 0) for k in ("label", "inner"))
        if labelled == 0:
            raise ForgetkitError(
                "no position of the target can carry a label: every token belongs to an anchor",
                where="3-anchors/anchors.yaml",
                remedy="set keep: false on the commonest entries (forgetkit anchors lint)",
            )
        if retain is not None and n_retain:
            plain = Labeller(baseline, None, retain_settings(settings), pad_id=labeller.pad_id, bos_id=retain.bos_id)
            summary["retain"] = write_labels(
                plain_blocks(retain, own_blocks(n_retain)),
                n_retain,
                plain,
                out / "retain",
                text_only=settings.retain == "lm",
                progress=progress,
            )
    if distributed.is_main():
        (out / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False))
    return summary


def retain_settings(settings: RelabelSettings) -> RelabelSettings:
    """The baseline's own soft prediction, nothing subtracted."""
    nothing = {"alpha": 0.0, "contrast": 0.0, "prior": 0.0, "temperature": 1.0, "suppress_text": 0.0}
    return settings.model_copy(update={**nothing, "dictionaries": 1, "labels": "soft"})


def load_labels(folder: Path) -> tuple[LabelShards, LabelShards | None]:
    """The (target, retain) labels that `build_labels` wrote."""
    retain = folder / "retain"
    return LabelShards(folder / "target"), LabelShards(retain) if retain.exists() else None
