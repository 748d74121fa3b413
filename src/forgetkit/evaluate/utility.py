"""General ability: the paper's benchmark tasks through lm-eval (EleutherAI), zero-shot, from local files or the Hub.

Every task is multiple choice. With context c and options o_1..o_k, lm-eval asks the model for the summed
log-probabilities (nats) l_j = log p(o_j | c) and scores an item

    acc      = [argmax_j l_j = gold]                    the first option wins a tie
    acc_norm = [argmax_j l_j / len(o_j) = gold]         len in characters, without the separating space

(for winogrande the options are put into the context and the rest of the sentence is scored). The paper's table
(WHP, arXiv 2310.02238) names the harness and no metric; its HellaSwag .577 for Llama-2-7b-chat fits `acc` (that
model's `acc_norm` is about .75), so `acc` is the column to hold against it. The Open LLM Leaderboard (2023) showed
`acc_norm` for ARC-Challenge and HellaSwag, with 25 and 10 examples in the context, which are not given here. Prompts,
scoring and split are those of lm-eval's own task files, which are included, not copied; the data may lie in local
files (layout: `utility_tasks`).

How these numbers are fooled:
 - A model at chance has nothing to lose: look at `above_floor` of the baseline before reading a small drop as "kept".
   The floor is not chance alone: always answering the commoner label of BoolQ gives 62%.
 - A dead model does not score 0. With NaN logits lm-eval's argmax takes an option all the same and reports its share
   of gold answers; here such items are NaN and the accuracy is "not finite". A model of constant output ties
   everywhere and gets the share of items whose first option is right: see `ties`.
 - In bfloat16 lm-eval sums rounded log-probabilities and options tie by rounding; here log-softmax is in float32.
 - Contexts longer than the window are cut from the left without an error: see `truncated`.
 - Accuracy is a threshold: probabilities can fall a long way before one answer changes. Held-out loss is finer.
 - The tasks were on the web before the model was trained; they measure memory of themselves too. The baseline
   profits alike, which is why the paired difference is the number to read.
 - None of the tasks is near the target: collateral damage next to it shows in neighbour text, not here.
 - Seven tasks and twelve columns: with nothing changed, one of twelve independent differences is beyond 1.96 standard
   errors in 46% of all comparisons.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.progress import progress
from forgetkit.evaluate.cache import Part
from forgetkit.evaluate.forward import LOGITS_ELEMENTS, MAX_ROWS, vocabulary_size
from forgetkit.evaluate.layouts import INSTALL
from forgetkit.evaluate.statistics import Floats, Ints, Series, paired_difference
from forgetkit.evaluate.utility_tasks import SPECS, TASKS, check_tasks, read_task, task_files

METRICS = ("acc", "acc_norm")
_ROW_TOKENS = 256


# --- scores ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskScores:
    """One model on the n items of one task.

    items: a hash per item, in order (the same items in the same order is what makes models comparable).
    acc, acc_norm: float64 [n], 1 or 0, NaN where a log-probability was not finite; acc_norm None where lm-eval does
    not define it for the task. log_likelihoods: float64 [sum of options], nats, item after item; options: int64 [n];
    gold: int64 [n], index of the right option. truncated: items whose context was cut to fit the window.
    """

    task: str
    items: tuple[str, ...]
    acc: Floats
    acc_norm: Floats | None
    log_likelihoods: Floats
    options: Ints
    gold: Ints
    truncated: int
    lm_eval: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """'acc', and 'acc_norm' where there is one."""
        return METRICS if self.acc_norm is not None else METRICS[:1]

    @property
    def chance(self) -> float:
        """Expected accuracy of a blind guess: mean over items of 1 / options (ARC has items of 3, 4 and 5)."""
        return float((1.0 / self.options).mean()) if len(self.options) else float("nan")

    @property
    def majority(self) -> float:
        """Accuracy of always giving the same option number: the share of the commonest gold index."""
        return float(np.bincount(self.gold).max() / len(self.gold)) if len(self.gold) else float("nan")

    @property
    def nonfinite(self) -> int:
        """Items with a NaN or infinite log-probability."""
        return sum(not np.isfinite(own).all() for own in self._per_item())

    @property
    def ties(self) -> int:
        """Items on which two options share the highest log-probability; lm-eval gives them to the first one."""
        return sum(int((own == own.max()).sum() > 1) for own in self._per_item() if np.isfinite(own).all())

    def _per_item(self) -> list[Floats]:
        return np.split(self.log_likelihoods, np.cumsum(self.options)[:-1]) if len(self.options) else []

    def series(self, metric: str = "acc") -> Series:
        """The metric per item, each item a cluster of its own: mean and standard error sd / sqrt(n), as lm-eval."""
        values = {"acc": self.acc, "acc_norm": self.acc_norm}[metric]
        assert values is not None, f"{self.task} has no {metric}"
        return Series(values, np.ones(len(values)), np.arange(len(values), dtype=np.int64))

    def above_floor(self, metric: str = "acc") -> bool:
        """Whether the accuracy is more than two standard errors above chance and above the constant answer.

        Where the baseline's is not, the task cannot show a loss and says nothing about utility.
        """
        one = self.series(metric)
        return one.finite and one.mean - max(self.chance, self.majority) > 2 * one.error

    def to_part(self) -> Part:
        """For the cache of finished measurements."""
        arrays = {"acc": self.acc, "log_likelihoods": self.log_likelihoods, "options": self.options, "gold": self.gold}
        if self.acc_norm is not None:
            arrays["acc_norm"] = self.acc_norm
        info = {"task": self.task, "items": list(self.items), "truncated": self.truncated, "lm_eval": self.lm_eval}
        return Part(dict(arrays), info)

    @classmethod
    def from_part(cls, part: Part) -> TaskScores:
        """What `to_part` stored."""
        return cls(
            task=part.info["task"],
            items=tuple(part.info["items"]),
            acc=part.arrays["acc"],
            acc_norm=part.arrays.get("acc_norm"),
            log_likelihoods=part.arrays["log_likelihoods"],
            options=part.arrays["options"],
            gold=part.arrays["gold"],
            truncated=part.info["truncated"],
            lm_eval=part.info["lm_eval"],
        )


class Delta(NamedTuple):
    """Accuracy of a model minus that of the baseline, over the same items.

    error: standard error of the paired difference, sd(a_i - b_i) / sqrt(n); low, high: 95% paired bootstrap
    interval; won, lost: items that only the model, or only the baseline, gets right; tells: whether the baseline is
    above its floor, so that a loss could show. value None: see reason.
    """

    value: float | None
    error: float | None
    low: float | None
    high: float | None
    n: int
    won: int
    lost: int
    tells: bool
    reason: str | None = None


def utility_delta(model: TaskScores, baseline: TaskScores, metric: str = "acc", *, seed: int = 0) -> Delta:
    """The paired difference of one task; raises ForgetkitError where items or lm-eval versions differ."""
    what = ""
    if (model.task, model.items) != (baseline.task, baseline.items):
        what = f"model and baseline were measured on different items ({model.task}, {baseline.task})"
    elif model.lm_eval != baseline.lm_eval:
        what = f"measured by different versions of lm-eval ({model.lm_eval}, {baseline.lm_eval})"
    if what:
        raise ForgetkitError(what, "utility", "measure both with the same data files, limit and lm-eval")
    own, base = model.series(metric), baseline.series(metric)
    tells = baseline.above_floor(metric)
    if not (own.finite and base.finite):
        whose = "the model's" if not own.finite else "the baseline's"
        reason = f"{whose} log-probabilities are not finite" if len(own.values) else "no items"
        return Delta(None, None, None, None, len(own.values), 0, 0, tells, reason)
    apart = own.values - base.values
    estimate = paired_difference(own, base, seed=seed)
    error = Series(apart, own.weights, own.groups).error
    return Delta(
        value=estimate.value,
        error=error if math.isfinite(error) else None,
        low=estimate.low,
        high=estimate.high,
        n=len(apart),
        won=int((apart > 0).sum()),
        lost=int((apart < 0).sum()),
        tells=tells,
    )


def utility_rows(
    model: Mapping[str, TaskScores], baseline: Mapping[str, TaskScores] | None = None, *, seed: int = 0
) -> list[dict[str, Any]]:
    """One plain row per task and metric, as JSON can hold it: value, error, chance, majority, n, counts, delta."""
    rows = []
    for name, scores in model.items():
        for metric in scores.metrics:
            one = scores.series(metric)
            row: dict[str, Any] = {
                "task": name,
                "metric": metric,
                "value": one.mean if one.finite else None,
                "error": one.error if one.finite and math.isfinite(one.error) else None,
                "chance": scores.chance,
                "majority": scores.majority,
                "above_floor": scores.above_floor(metric),
                "n": len(scores.items),
                "ties": scores.ties,
                "truncated": scores.truncated,
                "nonfinite": scores.nonfinite,
                "lm_eval": scores.lm_eval,
            }
            if baseline is not None and name in baseline:
                row["delta"] = utility_delta(scores, baseline[name], metric, seed=seed)._asdict()
            rows.append(row)
    return rows


# --- measuring -------------------------------------------------------------------------------------------


def require_lm_eval() -> str:
    """The version of lm-eval; raises ForgetkitError with the install line where it is missing."""
    try:
        import lm_eval
        import lm_eval.models.huggingface
    except ImportError as error:
        what = f"the utility tasks need lm-eval, which cannot be imported ({error})"
        raise ForgetkitError(what, "utility", INSTALL) from error
    return str(lm_eval.__version__)


def measure_utility(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[str] = TASKS,
    *,
    data_dir: Path | None = None,
    allow_download: bool = False,
    limit: int | None = None,
    batch_size: int | None = None,
) -> dict[str, TaskScores]:
    """Score `model` on `tasks`, zero-shot, without a chat template.

    data_dir: local files in the layout of `utility_tasks`; nothing then touches the network. Without it, and only if
    `allow_download`, lm-eval fetches its own data sets (or takes them from the cache, under HF_HUB_OFFLINE=1).
    limit: at most this many items per task, evenly spread over the file and the same for every model; a number
    measured with a limit is not comparable with published ones. batch_size None: as many rows of 256 tokens as the
    budget for logits allows. Random generators and the tokenizer stay as they are.

    Raises ForgetkitError: lm-eval missing, unknown task, missing or malformed file, no data permitted, a limit below
    1, an answer longer than the context window.
    """
    names = check_tasks(tasks)
    if limit is not None and limit < 1:
        raise ForgetkitError(f"a limit of {limit} items", "utility", "give at least 1, or no limit")
    if data_dir is None and not allow_download:
        remedy = "give a data folder (--data-dir), or permit the download (model.allow_download=true)"
        raise ForgetkitError("no local data for the utility tasks, and downloads are not permitted", "utility", remedy)
    files = {} if data_dir is None else task_files(data_dir, names)
    version = require_lm_eval()
    records = {name: read_task(name, path) for name, path in files.items()}
    with tempfile.TemporaryDirectory() as scratch, _quiet(offline=data_dir is not None):
        loaded = _load_tasks(names, records, Path(scratch), version)
        rows = batch_size or max(1, min(MAX_ROWS, LOGITS_ELEMENTS // (_ROW_TOKENS * vocabulary_size(model))))
        harness = _harness(model, tokenizer, rows)
        return {name: _score(harness, name, task, limit, version) for name, task in loaded.items()}


def _load_tasks(
    names: Sequence[str], records: Mapping[str, list[dict[str, Any]]], scratch: Path, version: str
) -> dict[str, Any]:
    """lm-eval's task objects, from configurations that include its own and replace the data.

    The checked records are written again, so that a column of mixed types elsewhere in a file cannot stop the
    reader of `datasets`, and its Arrow copy goes to `scratch` and not into the user's cache.
    """
    import lm_eval
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    for name in names:
        task = SPECS[name]
        source = Path(lm_eval.__file__).parent / "tasks" / task.yaml
        if not source.is_file():
            what = f"lm-eval {version} has no task file {task.yaml}"
            raise ForgetkitError(what, "utility", "pip install 'lm-eval>=0.4.13,<0.5'")
        config: dict[str, Any] = {"include": str(source), "task": name}
        if name in records:
            file = scratch / f"{name}.jsonl"
            file.write_text("".join(json.dumps(record) + "\n" for record in records[name]), encoding="utf-8")
            splits = {f"{split}_split": None for split in ("training", "validation", "test")}
            kept = "test_split" if task.split == "test" else "validation_split"
            config |= splits | {
                kept: task.split,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {task.split: str(file)}, "cache_dir": str(scratch / "arrow")},
            }
        # JSON is YAML; a relative include is not found by lm-eval 0.4.13, which then drops the task without a word
        (scratch / f"{name}.yaml").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    try:
        manager = TaskManager(include_path=str(scratch), include_defaults=False)
        tasks = manager.load(list(names))["tasks"]
    except (OSError, ValueError, RuntimeError, KeyError, DatasetsError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ForgetkitError(f"lm-eval cannot load its tasks: {lines[0][:300]}", "utility", "use --data-dir") from error
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=0)
    return {name: tasks[name] for name in names}


def _harness(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    """lm-eval's wrapper around a loaded model, which counts what it cuts and shows our own progress."""
    from lm_eval.models.huggingface import HFLM

    class Harness(HFLM):  # type: ignore[misc] # lm-eval has no types here
        """Pairs (context, answer) that did not fit, and one bar for all requests of a task."""

        def __init__(self) -> None:
            # a copy: HFLM gives the tokenizer a padding token; float32: see the module's docstring
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
                softmax_dtype=torch.float32,
            )
            self.cut: set[tuple[str, str]] = set()
            self.label = "utility"
            self._advance: Callable[[int], None] = lambda rows: None

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
            window = int(self.max_length)
            for pair, context, answer in requests:
                if len(answer) > window:
                    what = f"an answer of {len(answer)} tokens does not fit into a window of {window}"
                    raise ForgetkitError(what, self.label, "leave the task out for this model")
                if len(context) + len(answer) > window + 1:
                    self.cut.add(pair)
            rows = len({(*context, *answer[:-1]) for _, context, answer in requests})
            with progress(self.label, rows, "rows") as bar:
                self._advance = bar.advance
                return super()._loglikelihood_tokens(requests, disable_tqdm=True)

        def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._advance(len(inps))
            return super()._model_call(inps, *args, **kwargs)

    return Harness()


def _score(harness: Any, name: str, task: Any, limit: int | None, version: str) -> TaskScores:
    import lm_eval

    count = len(task.eval_docs)
    chosen = None
    if limit is not None and limit < count:
        chosen = {name: [int(i) for i in (np.arange(limit) + 0.5) * count / limit]}
    harness.cut, harness.label = set(), name
    out = lm_eval.evaluate(
        lm=harness, task_dict={"tasks": {name: task}}, samples=chosen, bootstrap_iters=0, log_samples=True
    )
    samples = out["samples"][name]
    likelihoods = [np.array([pair[0] for pair in sample["filtered_resps"]], dtype=np.float64) for sample in samples]
    broken = np.array([not np.isfinite(own).all() for own in likelihoods], dtype=bool)

    def metric(key: str) -> Floats:
        values = np.array([float(sample[key]) for sample in samples])
        values[broken] = np.nan
        return values

    gold = [int(task.doc_to_text(s["doc"]) if task.multiple_input else s["target"]) for s in samples]
    return TaskScores(
        task=name,
        items=tuple(sample["doc_hash"] for sample in samples),
        acc=metric("acc"),
        acc_norm=metric("acc_norm") if "acc_norm" in samples[0] else None,
        log_likelihoods=np.concatenate(likelihoods),
        options=np.array([len(own) for own in likelihoods], dtype=np.int64),
        gold=np.array(gold, dtype=np.int64),
        truncated=sum(any(tuple(pair) in harness.cut for pair in sample["arguments"]) for sample in samples),
        lm_eval=version,
    )


@contextlib.contextmanager
def _quiet(offline: bool) -> Iterator[None]:
    """lm-eval and datasets without bars and advice; offline: without the network too. `random` is left as it was.

    `datasets` asks a server before it opens even a local JSON file (to count uses), unless it was told to be offline
    when it was imported; so the switch is set where it is read.
    """
    import datasets
    import lm_eval.api.task

    logger = logging.getLogger("lm_eval")
    level, hidden = logger.level, datasets.are_progress_bars_disabled()
    generator = random.getstate()  # lm-eval draws from it whenever a task is asked for its name
    was_offline, bar = datasets.config.HF_HUB_OFFLINE, lm_eval.api.task.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = lambda items, **options: items  # the one bar without a switch
    datasets.config.HF_HUB_OFFLINE = was_offline or offline
    try:
        yield
    finally:
        random.setstate(generator)
        lm_eval.api.task.tqdm = bar
        datasets.config.HF_HUB_OFFLINE = was_offline
        logger.setLevel(level)
        if not hidden:
            datasets.enable_progress_bars()
