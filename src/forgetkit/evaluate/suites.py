"""What the suites measure on one model: chosen once for all models, cached part by part like every other measure.

`data.FAMILIES` names the families of each suite; the rows that are made of the parts are in `rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedTokenizerBase

from forgetkit.core.artifacts import hash_file, hash_json
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import local_folder
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.attacks import measure_gradient_norms
from forgetkit.evaluate.cache import Part, Store
from forgetkit.evaluate.cloze import clusters
from forgetkit.evaluate.data import FAMILIES, Data, load_data, question_text
from forgetkit.evaluate.knowledge import (
    ANSWER_TOKENS,
    LETTERS,
    Choice,
    Question,
    choice_prompt,
    knowmem_prompt,
    measure_choices,
    measure_knowmem,
)
from forgetkit.evaluate.losses import sample_blocks
from forgetkit.evaluate.measure import LazyModel, Measurer
from forgetkit.evaluate.memorization import (
    VERBATIM_TOKENS,
    Passage,
    encode_passages,
    exact_memorization,
    score_verbatim,
    verbatim_scores,
)
from forgetkit.evaluate.plan import Plan
from forgetkit.evaluate.probes import MIN_DISTRACTORS
from forgetkit.evaluate.rouge import Convention, words
from forgetkit.evaluate.statistics import Floats, Ints
from forgetkit.evaluate.tofu import ANSWER_TOKENS as TOFU_TOKENS
from forgetkit.evaluate.tofu import TofuItem, measure_tofu
from forgetkit.evaluate.tokens import (
    Ids,
    continue_greedily,
    decode_text,
    encode_answers,
    encode_text,
    measure_tokens,
)
from forgetkit.evaluate.utility import TaskScores, measure_utility
from forgetkit.evaluate.utility_tasks import task_files

VERSION = 1
"""Of the suites' measures: part of their cache keys, to be raised when one of them changes."""
ROUGES: tuple[Convention, ...] = ("muse", "openunlearning")
_SPARE = 8  # tokens by which rotated options may be longer than the written order
_CONTEXT = 4096  # tokens of a text at most, where the models name no context window


@dataclass(frozen=True)
class Passages:
    """Prefixes and what really follows.

    worded [n]: whether the truth has words (ROUGE is of words); tokens: length of the continuations; cut: prefixes that
    lost their beginning to the context window; source: where they come from.
    """

    rows: tuple[Passage, ...]
    worded: np.ndarray
    tokens: int
    cut: int
    source: str


@dataclass(frozen=True)
class Ratios:
    """Right and wrong answers, one row of ids each: question i owns k + 1 rows, the right answer's first.

    starts: where each answer begins; groups [n]: the questions' sources; wrong: k.
    """

    rows: list[list[int]]
    starts: list[int]
    groups: Ints
    wrong: int
    source: str


@dataclass(frozen=True)
class Texts:
    """Texts under attack, as ids with their BOS token. groups [n]: their documents; cut: texts that the window cut."""

    rows: list[list[int]]
    texts: list[str]
    groups: Ints
    cut: int = 0


@dataclass(frozen=True)
class Attacked:
    """Both sides of a membership attack, and where the non-members come from."""

    members: Texts
    nonmembers: Texts
    source: str


@dataclass(frozen=True)
class Asked:
    """Questions with as many examples before them as the context window allows."""

    questions: tuple[Question, ...]
    shots: tuple[Question, ...]
    given: int


@dataclass(frozen=True)
class Chosen:
    """Multiple-choice questions that fit into the window. left_out: those that do not; groups [n]: their sources."""

    choices: tuple[Choice, ...]
    groups: Ints
    left_out: int


@dataclass(frozen=True)
class SuitePlan:
    """What a suite measures. missing: what it cannot measure (family or part of it) -> why."""

    suite: str
    families: tuple[str, ...]
    data: Data
    window: int
    passages: Passages | None = None
    ratios: Ratios | None = None
    attacked: Attacked | None = None
    choices: Chosen | None = None
    tofu: dict[str, tuple[TofuItem, ...]] = field(default_factory=dict)
    tofu_tokens: int = TOFU_TOKENS
    verbmem: Passages | None = None
    knowmem: dict[str, Asked] = field(default_factory=dict)
    privleak: Attacked | None = None
    wmdp: dict[str, Chosen] = field(default_factory=dict)
    task_files: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


# --- choosing --------------------------------------------------------------------------------------------------


def context_window(sources: Sequence[LazyModel]) -> int:
    """The smallest context window of the models, from their configurations; 4,096 where none names one."""
    found = [_CONTEXT]
    for source in sources:
        config = AutoConfig.from_pretrained(local_folder(source.source, source.settings), local_files_only=True)
        window = getattr(config.get_text_config(), "max_position_embeddings", None)
        found += [window] if isinstance(window, int) and window > 0 else []
    return min(found)


def make_suite(
    plan: Plan,
    sources: Sequence[LazyModel],
    *,
    target_from: str = "",
    holdout: BlockedCorpus | None = None,
    data: Data | None = None,
) -> SuitePlan | None:
    """Choose what the suite of `plan.settings` measures; None for the default suite.

    target_from: the layout that gave the target ('muse', 'tofu'): its own questions and texts are then used. holdout:
    non-members. data: of `load_data`, where it was read before.

    Raises ForgetkitError as `load_data`.
    """
    settings = plan.settings
    families = FAMILIES[settings.suite]
    if not families:
        return None
    data = data or load_data(settings, sources[0].settings)
    window = context_window(sources)
    chooser = _Chooser(plan, data, window, target_from)
    made: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if "memorization" in families:
        made |= {"passages": chooser.passages(), "ratios": chooser.ratios()}
        if made["ratios"] is None:
            missing["truth_ratio"] = "no wrong answers are known: give cloze probes (evaluate.probes), or TOFU"
    if "privacy" in families:
        made["attacked"] = chooser.attacked(holdout)
        if made["attacked"] is None:
            missing["privacy"] = (
                "no non-members: give texts of the target's kind that no model was trained on (--holdout)"
            )
    if "knowledge" in families:
        made["choices"] = chooser.cloze_choices()
    if "utility" in families and not data.tasks:
        where = "" if settings.data_dir is None else " (this data folder holds none of their files)"
        missing["utility"] = f"no data of the utility tasks: give --data-dir, or model.allow_download=true{where}"
    if data.utility is not None:
        made["task_files"] = task_files(data.utility, data.tasks)
    for layout in ("tofu", "muse", "wmdp"):
        if layout in families and layout not in data.found:
            missing[layout] = f"no data folder that holds {layout.upper()}"
    if "tofu" in families and data.tofu is not None:
        made |= chooser.tofu()
    if "muse" in families and data.muse is not None:
        made |= chooser.muse()
    if "wmdp" in families:
        made["wmdp"] = {domain: chooser.fitting(choices) for domain, choices in data.wmdp.items()}
    return SuitePlan(settings.suite, families, data, window, missing=missing, **made)


class _Chooser:
    """The choices, from texts, probes and data alone."""

    def __init__(self, plan: Plan, data: Data, window: int, target_from: str) -> None:
        self.plan, self.data, self.window, self.target_from = plan, data, window, target_from
        self.tokenizer: PreTrainedTokenizerBase = plan.tokenizer
        self.bos = beginning(self.tokenizer)

    def _cut(self, prefix: Ids, room: int) -> tuple[list[int], bool]:
        """The end of a prefix, its BOS token kept, where it is longer than `room`."""
        if len(prefix) <= room:
            return list(prefix), False
        head = [] if self.bos is None else [self.bos]
        return head + list(prefix)[len(prefix) - room + len(head) :], True

    def _passages(self, rows: Sequence[Passage], source: str, tokens: int = 0) -> Passages:
        kept = [row for row in rows if len(row.suffix)]
        longest = max((len(row.suffix) for row in kept), default=0)
        tokens = min(tokens, self.window // 2) or min(longest, VERBATIM_TOKENS)
        room = self.window - max(tokens, longest)
        cut = [self._cut(row.prefix, room) for row in kept]
        fitted = tuple(Passage(prefix, row.suffix) for (prefix, _), row in zip(cut, kept, strict=True) if prefix)
        worded = np.array([bool(words(decode_text(self.tokenizer, row.suffix))) for row in fitted], dtype=bool)
        return Passages(fitted, worded, tokens, sum(was for _, was in cut), source)

    def passages(self) -> Passages:
        """MUSE's own, TOFU's questions with their answers, or halves of the target's blocks."""
        if self.target_from == "muse" and self.data.muse is not None:
            return self.verbmem()
        if self.target_from == "tofu" and self.data.tofu is not None:
            template = self.plan.settings.tofu_template
            pairs = [
                (template.replace("{question}", one.question), f" {one.answer}") for one in self.data.tofu.forget_all
            ]
            some = [pairs[i] for i in spread(len(pairs), self.plan.settings.passages)]
            ids, starts = encode_answers(self.tokenizer, some)
            rows = [Passage(row[:start], row[start:]) for row, start in zip(ids, starts, strict=True)]
            return self._passages(rows, "TOFU's questions")
        target = self.plan.target
        head = [] if target.bos_id is None else [target.bos_id]
        blocks = [np.asarray(target[i].ids).tolist() for i in sample_blocks(target, self.plan.settings.passages)]
        halves = [(len(ids) // 2, ids) for ids in blocks if len(ids) >= 2]
        rows = [Passage(head + ids[:at], ids[at : at + VERBATIM_TOKENS]) for at, ids in halves]
        return self._passages(rows, "the target's blocks, first half given")

    def verbmem(self) -> Passages:
        """MUSE's passages, as MUSE cuts them."""
        assert self.data.muse is not None
        pairs = [(one.prompt, one.continuation) for one in self.data.muse.verbatim]
        return self._passages(encode_passages(self.tokenizer, pairs), "MUSE's passages", VERBATIM_TOKENS)

    def ratios(self) -> Ratios | None:
        """TOFU's forget set, or the cloze probes with their first distractors; None without either."""
        if self.target_from == "tofu" and self.data.tofu is not None:
            items, source = self.data.tofu.forget, "TOFU's paraphrased and wrong answers"
            template = self.plan.settings.tofu_template
            prompts = [template.replace("{question}", item.question) for item in items]
            answers = [[item.paraphrase or item.answer, *item.wrong] for item in items]
            groups = np.arange(len(items), dtype=np.int64)
        else:
            cloze, source = self.plan.probes.cloze, "cloze probes: answer and distractors"
            prompts = [item.prompt for item in cloze]
            answers = [list(item.options[: 1 + MIN_DISTRACTORS]) for item in cloze]
            groups = clusters([(item.source.file, item.source.quote) for item in cloze])
        if not answers:
            return None
        pairs = [(prompt, f" {text}") for prompt, row in zip(prompts, answers, strict=True) for text in row]
        rows, starts = encode_answers(self.tokenizer, pairs, end=self.target_from == "tofu")
        return Ratios(rows, starts, groups, len(answers[0]) - 1, source)

    def attacked(self, holdout: BlockedCorpus | None) -> Attacked | None:
        """Target against non-members; None where there are none."""
        if self.target_from == "muse" and self.data.muse is not None:
            return self.privleak()
        if self.target_from == "tofu" and self.data.tofu is not None and self.data.tofu.holdout:
            template = self.plan.settings.tofu_template
            sides = [
                [question_text(template, one) for one in some]
                for some in (self.data.tofu.forget_all, self.data.tofu.holdout)
            ]
            return Attacked(self._texts(sides[0]), self._texts(sides[1]), "TOFU's holdout questions")
        texts, settings = self.plan.texts, self.plan.settings
        found, source = holdout, "holdout text"
        if found is None and settings.heldout:
            found, source = texts.get("heldout"), "held-out text"
        if found is None:
            found, source = texts.get("neighbour"), "neighbour text (which the models may have read)"
        if found is None:
            return None
        members, nonmembers = self._blocks(self.plan.target), self._blocks(found)
        return Attacked(members, nonmembers, source) if members.rows and nonmembers.rows else None

    def privleak(self) -> Attacked:
        """MUSE's own members and non-members."""
        assert self.data.muse is not None
        muse = self.data.muse
        return Attacked(self._texts(muse.private_forget), self._texts(muse.private_holdout), "MUSE's holdout")

    def _texts(self, texts: Sequence[str]) -> Texts:
        some = [texts[i] for i in spread(len(texts), self.plan.settings.attack_texts)]
        encoded = [(text, encode_text(self.tokenizer, text, self.bos)) for text in some]
        some, rows = [text for text, row in encoded if len(row) > 1], [row for _, row in encoded if len(row) > 1]
        long = sum(len(row) > self.window for row in rows)
        kept = [row[: self.window] for row in rows]
        shown = [
            text if len(row) <= self.window else decode_text(self.tokenizer, row[: self.window])
            for text, row in zip(some, rows, strict=True)
        ]
        return Texts(kept, shown, np.arange(len(kept), dtype=np.int64), long)

    def _blocks(self, corpus: BlockedCorpus) -> Texts:
        """Blocks, evenly spread; short ones only where there are not two whole ones."""
        sizes = corpus.bounds[:, 2] - corpus.bounds[:, 1]
        need = 1 if corpus.bos_id is not None else 2
        whole = np.flatnonzero(sizes >= max(need, corpus.block_tokens))
        usable = whole if len(whole) > 1 else np.flatnonzero(sizes >= need)
        chosen = usable[spread(len(usable), self.plan.settings.attack_texts)]
        head = [] if corpus.bos_id is None else [corpus.bos_id]
        rows, texts = [], []
        for i in chosen.tolist():
            document, first, last = corpus.bounds[i].tolist()
            rows.append(head + corpus.ids[first:last].tolist())
            begin, end = int(corpus.offsets[first, 0]), int(corpus.offsets[last - 1, 1])
            texts.append(corpus.documents[document].text[begin:end])
        return Texts(rows, texts, corpus.bounds[chosen, 0].astype(np.int64))

    def cloze_choices(self) -> Chosen:
        """Cloze probes as multiple choice, their options in an order drawn by the seed."""
        generator = np.random.default_rng(self.plan.seed)
        made = []
        for item in self.plan.probes.cloze:
            order = generator.permutation(min(len(item.options), len(LETTERS)))
            options = tuple(item.options[i] for i in order)
            made.append(Choice(f"{item.prompt} ...", options, int(np.flatnonzero(order == 0)[0])))
        groups = clusters([(item.source.file, item.source.quote) for item in self.plan.probes.cloze])
        return self.fitting(made, groups)

    def fitting(self, choices: Sequence[Choice], groups: Ints | None = None) -> Chosen:
        """The questions that fit into the context window in any order of their options."""
        groups = np.arange(len(choices), dtype=np.int64) if groups is None else groups
        sizes = [
            len(
                encode_text(self.tokenizer, choice_prompt(one.question, one.options, range(len(one.options))), self.bos)
            )
            for one in choices
        ]
        kept = [i for i, size in enumerate(sizes) if size + _SPARE <= self.window]
        return Chosen(tuple(choices[i] for i in kept), groups[kept], len(choices) - len(kept))

    def tofu(self) -> dict[str, Any]:
        """TOFU's four sets, and the tokens of an answer that fit after the longest question."""
        tofu = self.data.tofu
        assert tofu is not None
        sets = {name: getattr(tofu, name) for name in ("forget", "retain", "real_authors", "world_facts")}
        template = self.plan.settings.tofu_template
        longest = max(
            len(encode_text(self.tokenizer, template.replace("{question}", item.question), self.bos))
            for items in sets.values()
            for item in items
        )
        return {"tofu": sets, "tofu_tokens": max(1, min(TOFU_TOKENS, self.window - longest))}

    def muse(self) -> dict[str, Any]:
        """MUSE's passages, questions with the examples that fit, and texts."""
        muse = self.data.muse
        assert muse is not None
        asked = {
            "forget": self._asked(muse.forget_questions, muse.forget_shots),
            "retain": self._asked(muse.retain_questions, muse.retain_shots),
        }
        return {"verbmem": self.verbmem(), "knowmem": asked, "privleak": self.privleak()}

    def _asked(self, questions: tuple[Question, ...], shots: tuple[Question, ...]) -> Asked:
        room = self.window - ANSWER_TOKENS
        for count in range(len(shots), -1, -1):
            prompts = [knowmem_prompt(one.question, shots[:count]) for one in questions]
            if count == 0 or max(len(encode_text(self.tokenizer, text, self.bos)) for text in prompts) <= room:
                break
        return Asked(questions, shots[:count], len(shots))


def spread(n: int, most: int) -> Ints:
    """At most `most` of n indices, evenly spread, in order."""
    if n <= most:
        return np.arange(n, dtype=np.int64)
    return ((np.arange(most) + 0.5) * n / most).astype(np.int64)


# --- measuring -------------------------------------------------------------------------------------------------


class SuiteMeasurer(Measurer):
    """The measures of a suite on top of those of every evaluation, each looked up in `store` first."""

    def __init__(self, plan: Plan, store: Store, suite: SuitePlan | None) -> None:
        super().__init__(plan, store)
        self.suite = suite

    def families(self, source: LazyModel) -> dict[str, Part]:
        """Every part that the suite adds for one model."""
        suite = self.suite
        if suite is None:
            return {}
        parts: dict[str, Part] = {}
        if suite.passages is not None and suite.passages.rows:
            parts["memorization.tokens"] = self.tokens(source, suite.passages)
            parts["memorization.verbatim"] = self.verbatim(source, suite.passages)
        if suite.ratios is not None:
            parts["memorization.truth"] = self.truth(source, suite.ratios)
        if suite.attacked is not None:
            parts |= self.attack(source, suite.attacked, "privacy")
        if suite.choices is not None and suite.choices.choices:
            parts |= self.choice(source, suite.choices, "knowledge.choice")
        parts |= self.utility(source)
        parts |= {f"tofu.{name}": self.tofu(source, items) for name, items in suite.tofu.items()}
        parts |= self.muse(source)
        for domain, chosen in suite.wmdp.items():
            if chosen.choices:
                parts |= self.choice(source, chosen, f"wmdp.{domain}")
        return parts

    def _suite_part(self, name: str, source: LazyModel, inputs: Mapping[str, Any], make: Any) -> Part:
        return self._part(f"suite.{name}", source, {"suite_version": VERSION, **inputs}, make)

    def tokens(self, source: LazyModel, passages: Passages) -> Part:
        """Exact memorisation, mean log-probability and number of the tokens that follow each prefix."""
        rows, starts = _joined(passages)

        def make() -> Part:
            scores = measure_tokens(source.model, rows, starts, "memorisation")
            hit = exact_memorization(scores)
            return Part({"hit": hit, "log_p": scores.mean_log_p, "count": scores.counts}, {})

        return self._suite_part("tokens", source, {"rows": hash_json([rows, starts])}, make)

    def verbatim(self, source: LazyModel, passages: Passages) -> Part:
        """ROUGE-L of greedy continuations, by convention, and their longest verbatim run."""
        plan = self.plan

        def make() -> Part:
            prefixes = [row.prefix for row in passages.rows]
            made = continue_greedily(source.model, prefixes, passages.tokens, plan.eos_id, "verbatim")
            arrays: dict[str, np.ndarray] = {}
            for convention in ROUGES:
                scores = score_verbatim(plan.tokenizer, passages.rows, made, convention)
                arrays |= {f"{convention}.f1": scores.f1, f"{convention}.recall": scores.recall}
                arrays |= {"run": scores.run, "length": scores.length}
            return Part(arrays, {})

        rows = hash_json([[list(row.prefix), list(row.suffix)] for row in passages.rows])
        inputs = {"rows": rows, "tokens": passages.tokens, "eos": plan.eos_id}
        return self._suite_part("verbatim", source, inputs, make)

    def truth(self, source: LazyModel, ratios: Ratios) -> Part:
        """Mean losses of right [n] and wrong answers [n, k]."""

        def make() -> Part:
            losses = -measure_tokens(source.model, ratios.rows, ratios.starts, "truth ratio").mean_log_p
            table = losses.reshape(-1, ratios.wrong + 1)
            return Part({"right": table[:, 0], "wrong": table[:, 1:]}, {})

        inputs = {"rows": hash_json([ratios.rows, ratios.starts]), "wrong": ratios.wrong}
        return self._suite_part("truth", source, inputs, make)

    def attack(self, source: LazyModel, attacked: Attacked, name: str) -> dict[str, Part]:
        """Token scores and gradient norms of members and non-members."""
        parts = {}
        for side, texts in (("members", attacked.members), ("nonmembers", attacked.nonmembers)):
            inputs = {"rows": hash_json(texts.rows)}

            def tokens(texts: Texts = texts, side: str = side) -> Part:
                return Part(asdict(measure_tokens(source.model, texts.rows, None, f"attack: {side}")), {})

            def norms(texts: Texts = texts) -> Part:
                return Part({"norm": measure_gradient_norms(source.model, texts.rows)}, {})

            parts[f"{name}.tokens.{side}"] = self._suite_part("attack.tokens", source, inputs, tokens)
            parts[f"{name}.gradients.{side}"] = self._suite_part("attack.gradients", source, inputs, norms)
        return parts

    def choice(self, source: LazyModel, chosen: Chosen, name: str) -> dict[str, Part]:
        """Multiple choice over all rotations, with the question and without."""
        parts = {}
        items = hash_json([[one.question, one.options, one.answer] for one in chosen.choices])
        for label, with_question in ((name, True), (f"{name}.alone", False)):

            def make(with_question: bool = with_question) -> Part:
                model, tokenizer = source.model, self.plan.tokenizer
                return Part(asdict(measure_choices(model, tokenizer, chosen.choices, with_question=with_question)), {})

            inputs = {"choices": items, "with_question": with_question}
            parts[label] = self._suite_part("choices", source, inputs, make)
        return parts

    def utility(self, source: LazyModel) -> dict[str, Part]:
        """One part per utility task, so that a killed run loses one task at most."""
        suite = self.suite
        if suite is None:
            return {}
        settings, data = self.plan.settings, suite.data
        parts = {}
        for task in data.tasks:
            file = suite.task_files.get(task)

            def make(task: str = task) -> Part:
                made = measure_utility(
                    source.model,
                    self.plan.tokenizer,
                    [task],
                    data_dir=data.utility,
                    allow_download=source.settings.allow_download,
                    limit=settings.utility_limit,
                )
                return made[task].to_part()

            inputs = {
                "task": task,
                "limit": settings.utility_limit,
                "lm_eval": data.lm_eval,
                "file": "" if file is None else hash_file(file),
            }
            parts[f"utility.{task}"] = self._suite_part("utility", source, inputs, make)
        return parts

    def tofu(self, source: LazyModel, items: Sequence[TofuItem]) -> Part:
        """Losses of all answers and ROUGE-L recall of one of TOFU's sets."""
        template, tokens = self.plan.settings.tofu_template, self.suite.tofu_tokens if self.suite else TOFU_TOKENS

        def make() -> Part:
            return Part(asdict(measure_tofu(source.model, self.plan.tokenizer, items, template, tokens)), {})

        inputs = {"items": hash_json([asdict(item) for item in items]), "template": template, "tokens": tokens}
        return self._suite_part("tofu", source, inputs, make)

    def muse(self, source: LazyModel) -> dict[str, Part]:
        """MUSE's measures of one model."""
        suite, parts = self.suite, {}
        if suite is None:
            return {}
        if suite.verbmem is not None and suite.verbmem.rows:
            parts["muse.verbmem"] = self.verbatim(source, suite.verbmem)
        for name, asked in suite.knowmem.items():
            parts[f"muse.knowmem_{name}"] = self.knowmem(source, asked)
        if suite.privleak is not None:
            parts |= self.attack(source, suite.privleak, "muse.privleak")
        return parts

    def retained(self, source: LazyModel) -> Part:
        """KnowMem on MUSE's retain questions of one model of `muse_scalability` or `muse_sustainability`."""
        if self.suite is None or "retain" not in self.suite.knowmem:
            raise ForgetkitError(
                "evaluate.muse_scalability and evaluate.muse_sustainability need MUSE's questions",
                "evaluate",
                "give --suite full and a --data-dir that holds MUSE",
            )
        part = self.knowmem(source, self.suite.knowmem["retain"])
        source.close()
        return part

    def knowmem(self, source: LazyModel, asked: Asked) -> Part:
        """ROUGE-L of short answers, by convention."""

        def make() -> Part:
            made = measure_knowmem(source.model, self.plan.tokenizer, asked.questions, asked.shots)
            truths = [one.answer for one in asked.questions]
            arrays: dict[str, Floats] = {}
            for convention in ROUGES:
                recall, f1 = verbatim_scores(truths, made.answers, convention)
                arrays |= {f"{convention}.f1": f1, f"{convention}.recall": recall}
            return Part(dict(arrays), {})

        inputs = {"items": hash_json([[asdict(one) for one in some] for some in (asked.questions, asked.shots)])}
        return self._suite_part("knowmem", source, inputs, make)


def _joined(passages: Passages) -> tuple[list[list[int]], list[int]]:
    rows = [[*row.prefix, *row.suffix] for row in passages.rows]
    return rows, [len(row.prefix) for row in passages.rows]


def task_scores(parts: Mapping[str, Part]) -> dict[str, TaskScores]:
    """The utility tasks among a model's parts."""
    return {
        name.removeprefix("utility."): TaskScores.from_part(part)
        for name, part in parts.items()
        if name.startswith("utility.")
    }
