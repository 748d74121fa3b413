"""Relabelling as ALGORITHM.md says it, as slowly and plainly as possible: the oracle of the fast one.

One position at a time, full logits, fp64, characters walked one by one. It shares the matcher (what an anchor is) and
nothing else with the code under test.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from forgetkit.anchors.matcher import Matcher
from forgetkit.settings import RelabelSettings


def slow_labels(
    corpus: Any,
    block_index: int,
    matcher: Matcher,
    tokenizer: Any,
    baseline: Any,
    reinforced: Any,
    s: RelabelSettings,
    common: Any,
) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Of every position of a block: the label's log-probabilities and the larger of both models'; None: no loss."""
    block = corpus[block_index]
    text = corpus.documents[block.document].text
    start, end = block.char_start, block.char_end
    matches = [m for m in matcher.find(text) if m.end > start and m.start < end]
    out, ends_at, anchor_of, counterpart_starts = "", {}, {}, []
    at = start
    while at < end:
        match = next((m for m in matches if max(m.start, start) == at), None)
        if match is None:
            out += text[at]
            at += 1
            ends_at[at] = len(out)
        else:
            stop = min(match.end, end)
            for c in range(at, stop):
                anchor_of[c] = match
            counterpart_starts.append((len(out), match.anchor))
            out += match.replacement
            at = stop
            if match.end <= end:
                ends_at[at] = len(out)
    coded = tokenizer(out, add_special_tokens=False, return_offsets_mapping=True)
    t_ids, t_offsets = coded["input_ids"], coded["offset_mapping"]
    n = len(block.ids)
    token_match = [_anchor_in(block.offsets[i], anchor_of) for i in range(n)]
    first_token = [m is not None and (i == 0 or token_match[i - 1] is not m) for i, m in enumerate(token_match)]
    v_translated = baseline(torch.tensor([t_ids])).logits[0].double()
    v_original = baseline(torch.tensor([block.ids.tolist()])).logits[0].double()
    v_reinforced = reinforced(torch.tensor([block.ids.tolist()])).logits[0].double()
    telltale = _telltale(corpus, matcher)
    counts = [1.0] * v_original.shape[-1]
    for other in common:
        for token in other.ids.tolist():
            counts[token] += 1
    log_prior = [math.log(count / sum(counts)) for count in counts]
    result: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    for i in range(n):
        if i == n - 1:
            result.append(None)
            continue
        seen = {token_match[j].anchor for j in range(i + 1) if token_match[j] is not None}
        following = token_match[i + 1]
        continues = following is not None and not first_token[i + 1]
        if following is not None and s.mask_seen_anchors:
            earlier = {
                token_match[j].anchor for j in range(i + 1) if first_token[j] and token_match[j] is not following
            }
            if following.anchor in earlier:
                result.append(None)
                continue
        if continues:
            if s.mask_inside_anchors:
                result.append(None)
                continue
            v = v_original[i].clone()
        else:
            position = ends_at.get(int(block.offsets[i][1]))
            js = [j for j, (_, e) in enumerate(t_offsets) if e == position]
            if position is None or not js:
                result.append(None)
                continue
            v = v_translated[js[-1]].clone()
        r, own = v_reinforced[i], v_original[i]
        before = torch.maximum(torch.log_softmax(v, -1), torch.log_softmax(r, -1))
        if s.space == "log_probs":
            v, r, own = (torch.log_softmax(x, -1) for x in (v, r, own))
        for token in range(len(v)):
            generic = (v[token] - s.alpha * max(0.0, float(r[token] - v[token]))) / s.temperature
            v[token] = generic - s.contrast * (r[token] - own[token]) + s.prior * log_prior[token]
        lowered = dict.fromkeys(range(len(v)), 0.0)
        for token in _counterpart_tokens(seen, counterpart_starts, t_ids, t_offsets):
            lowered[token] += s.penalise_seen_counterparts
        for token in set().union(*telltale.values()) if telltale else ():
            if not any(token in telltale.get(a, ()) for a in seen):
                lowered[token] += s.suppress_unseen_anchors
        if continues:
            lowered[int(block.ids[i + 1])] += s.inner_suppression
        if following is None:
            lowered[int(block.ids[i + 1])] += s.suppress_text
        total = float(torch.logsumexp(v, -1))
        for token, amount in lowered.items():
            if s.prior > 0:  # never below its share of common text
                amount = min(amount, max(0.0, float(v[token]) - total - log_prior[token]))
            v[token] -= amount
        result.append((torch.log_softmax(v, -1), before))
    return result


def _anchor_in(span: Any, anchor_of: dict[int, Any]) -> Any:
    return next((anchor_of[c] for c in range(int(span[0]), int(span[1])) if c in anchor_of), None)


def _counterpart_tokens(seen: set[int], starts: list[tuple[int, int]], ids: list[int], offsets: Any) -> set[int]:
    found = set()
    for character, anchor in starts:
        if anchor in seen:
            found.add(next(t for t, (a, b) in zip(ids, offsets, strict=True) if a <= character < b))
    return found


def _telltale(corpus: Any, matcher: Matcher) -> dict[int, set[int]]:
    begins: dict[int, set[int]] = {}
    counts: dict[int, int] = {}
    total: dict[int, int] = {}
    for b in range(len(corpus)):
        block = corpus[b]
        matches = matcher.find(corpus.documents[block.document].text)
        for i, token in enumerate(block.ids.tolist()):
            total[token] = total.get(token, 0) + 1
            for m in matches:
                if block.offsets[i][0] <= m.start < block.offsets[i][1]:
                    counts[token] = counts.get(token, 0) + 1
                    begins.setdefault(m.anchor, set()).add(token)
    return {a: {t for t in tokens if counts[t] >= 0.5 * total[t]} for a, tokens in begins.items()}
