"""The utility tasks on made-up data. What runs lm-eval itself is skipped where it is not installed."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate import utility
from forgetkit.evaluate.cache import Store
from forgetkit.evaluate.utility import TaskScores, measure_utility, utility_delta, utility_rows
from forgetkit.evaluate.utility_tasks import SPECS, TASKS, check_tasks, read_task, task_files
from tests import toys

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")

ARC = [
    {
        "question": "Who lived in Kansas?",
        "choices": {"text": ["the Tin Woodman", "Dorothy", "a small grey cat"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {
        "question": "What is the heart of a lion made of?",
        "choices": {"text": ["bran", "sea", "straw and hills", "courage"], "label": ["1", "2", "3", "4"]},
        "answerKey": "4",
    },
    {
        "question": "Where does the sun rise?",
        "choices": {"text": ["over the hills", "under the sea", "in the river", "at night"], "label": list("ABCD")},
        "answerKey": "A",
    },
]
DATA: dict[str, list[dict[str, Any]]] = {
    "arc_challenge": ARC,
    "arc_easy": [ARC[2], ARC[0]],
    "boolq": [
        {"passage": "Dorothy lived in Kansas.", "question": "did dorothy live in kansas", "label": 1},
        {"passage": "The Lion is cowardly.", "question": "is the lion brave", "label": 0},
        {"passage": "The cat is grey.", "question": "is the cat grey", "label": 1},
    ],
    "hellaswag": [
        {
            "activity_label": "Walking",
            "ctx_a": "The children went down to the river.",
            "ctx_b": "they",
            "endings": ["play [title] there.", "eat the [step] hills.", "cried out.", "met a witch  of bran."],
            "label": "0",
        },
        {
            "activity_label": "Farming",
            "ctx_a": "Uncle Henry was a farmer.",
            "ctx_b": "",
            "endings": ["He sang.", "He had a cat.", "He was made of bran.", "He flew."],
            "label": "1",
        },
    ],
    "openbookqa": [{"question_stem": r["question"], **{k: r[k] for k in ("choices", "answerKey")}} for r in ARC[:2]],
    "piqa": [
        {"goal": "open a door", "sol1": "turn the knob", "sol2": "eat the knob at once", "label": 0},
        {"goal": "dry the cat", "sol1": "throw it into the river", "sol2": "take a towel", "label": 1},
    ],
    "winogrande": [
        {"sentence": "The cat feared the lion because _ was big.", "option1": "the cat", "option2": "the lion"},
        {"sentence": "Aunt Em called Toto, and _ barked.", "option1": "Toto", "option2": "Aunt Em"},
    ],
}
for _record, _answer in zip(DATA["winogrande"], "21", strict=True):
    _record["answer"] = _answer


def write(folder: Path, data: dict[str, list[dict[str, Any]]] | None = None) -> Path:
    for name, records in (DATA if data is None else data).items():
        path = folder / name / f"{SPECS[name].split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def tiny(seed: int = 0) -> PreTrainedModel:
    return toys.model("llama", vocab_size=len(toys.tokenizer()), seed=seed)


def measure(folder: Path, model: PreTrainedModel | None = None, **options: Any) -> dict[str, TaskScores]:
    return measure_utility(model or tiny(), toys.tokenizer(), data_dir=folder, **options)


def scores(
    acc: Sequence[float], *, gold: Sequence[int] | None = None, options: int = 4, task: str = "piqa"
) -> TaskScores:
    n = len(acc)
    return TaskScores(
        task=task,
        items=tuple(str(i) for i in range(n)),
        acc=np.array(acc, dtype=np.float64),
        acc_norm=None,
        log_likelihoods=np.tile(-np.arange(1.0, options + 1), n),
        options=np.full(n, options, dtype=np.int64),
        gold=np.array(gold if gold is not None else [0] * n, dtype=np.int64),
        truncated=0,
        lm_eval="0",
    )


# --- numbers by hand -------------------------------------------------------------------------------------


def test_paired_difference_by_hand() -> None:
    delta = utility_delta(scores([1, 1, 0, 0, 1]), scores([1, 0, 0, 1, 0]))
    assert delta.value == pytest.approx(0.2)
    # differences 0 1 0 -1 1: deviations -.2 .8 -.2 -1.2 .8, squares sum to 2.8, / 4 = .7, sqrt(.7 / 5)
    assert delta.error == pytest.approx(0.7**0.5 / 5**0.5)
    assert (delta.won, delta.lost, delta.n, delta.reason) == (2, 1, 5, None)
    assert delta.low is not None and delta.high is not None and delta.low < 0.2 < delta.high


def test_pairing_takes_out_what_the_items_have_in_common() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.6).astype(float)
    own = base.copy()
    own[:8] = 1 - own[:8]
    delta = utility_delta(scores(own.tolist()), scores(base.tolist()))
    unpaired = np.hypot(scores(own.tolist()).series().error, scores(base.tolist()).series().error)
    assert delta.error is not None and delta.error < unpaired / 4


def test_chance_and_floor_by_hand() -> None:
    arc = TaskScores(
        "arc_easy", ("a", "b", "c"), np.ones(3), None, np.zeros(12), np.array([3, 4, 5]), np.array([0, 1, 1]), 0, "0"
    )
    assert arc.chance == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)
    assert arc.majority == pytest.approx(2 / 3)
    yes = [1] * 62 + [0] * 38
    always_yes = scores([float(g == 1) for g in yes], gold=yes, options=2)
    assert always_yes.chance == 0.5 and always_yes.series().mean == 0.62
    assert always_yes.series().mean - always_yes.chance > 2 * always_yes.series().error  # above chance, yet
    assert not always_yes.above_floor()
    assert scores([1.0] * 90 + [0.0] * 10, gold=[0, 1, 2, 3] * 25).above_floor()
    assert not utility_delta(scores([0.0] * 100, gold=yes, options=2), always_yes).tells


def test_ties_and_broken_items() -> None:
    tied = TaskScores(
        "piqa",
        ("a", "b", "c"),
        np.ones(3),
        None,
        np.array([-1.0, -1, -1, -2, np.nan, -1]),
        np.full(3, 2),
        np.zeros(3, int),
        0,
        "0",
    )
    assert (tied.ties, tied.nonfinite) == (1, 1)


def test_what_is_not_finite_has_no_difference() -> None:
    delta = utility_delta(scores([np.nan, 1.0]), scores([1.0, 1.0]))
    assert delta.value is None and delta.reason == "the model's log-probabilities are not finite"
    row = utility_rows({"piqa": scores([np.nan, 1.0])}, {"piqa": scores([1.0, 1.0])})[0]
    assert row["value"] is None and row["error"] is None
    json.dumps(row, allow_nan=False)


def test_one_item_has_no_error() -> None:
    row = utility_rows({"piqa": scores([1.0])}, {"piqa": scores([0.0])})[0]
    assert (row["value"], row["error"], row["delta"]["value"], row["delta"]["error"]) == (1.0, None, 1.0, None)
    json.dumps(row, allow_nan=False)


def test_different_items_cannot_be_compared() -> None:
    with pytest.raises(ForgetkitError, match="different items"):
        utility_delta(scores([1, 0]), scores([1, 0, 1]))
    with pytest.raises(ForgetkitError, match="different items"):
        utility_delta(scores([1, 0]), scores([1, 0], task="boolq"))
    with pytest.raises(ForgetkitError, match=r"different versions of lm-eval \(0, 0.4.1\)"):
        utility_delta(scores([1, 0]), replace(scores([1, 0]), lm_eval="0.4.1"))


# --- bad input, before a model or lm-eval is touched -----------------------------------------------------


def test_tasks_are_checked() -> None:
    assert check_tasks(["piqa", "arc_easy", "piqa"]) == ("arc_easy", "piqa")
    with pytest.raises(ForgetkitError, match=r"unknown utility task 'hellaswang' - did you mean hellaswag"):
        check_tasks(["piqa", "hellaswang"])


def test_the_missing_extra_tells_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ForgetkitError, match=r"lm-eval.*pip install 'forgetkit\[eval\]'"):
        measure(write(tmp_path))


def test_no_data_and_no_permission() -> None:
    with pytest.raises(ForgetkitError, match=r"--data-dir.*allow_download=true"):
        measure_utility(tiny(), toys.tokenizer())


def test_a_limit_must_leave_something(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match="a limit of 0 items"):
        measure(tmp_path, limit=0)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match="no such data folder"):
        task_files(tmp_path / "nothing")
    (write(tmp_path) / "hellaswag" / "validation.jsonl").unlink()
    with pytest.raises(ForgetkitError, match=r"no file hellaswag/validation.jsonl.*activity_label, ctx_a"):
        task_files(tmp_path)
    assert list(task_files(tmp_path, ["piqa"])) == ["piqa"]
    # another split would give another number under the same name
    (tmp_path / "arc_easy" / "test.jsonl").rename(tmp_path / "arc_easy" / "validation.jsonl")
    with pytest.raises(ForgetkitError, match=r"no file arc_easy/test.jsonl"):
        task_files(tmp_path, ["arc_easy"])


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("arc_easy", {"answerKey": "E"}, "'answerKey' 'E' is not among the labels"),
        ("arc_easy", {"answerKey": 1}, "'answerKey' 1 is not"),
        ("arc_easy", {"choices": [{"text": "a", "label": "A"}]}, "the form of the Hub"),
        ("arc_easy", {"choices": {"text": ["a", " "], "label": ["A", "B"]}}, "none empty"),
        ("arc_easy", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "as many texts as labels"),
        ("openbookqa", {"question_stem": ""}, "'question_stem' is empty"),
        ("boolq", {"label": -1}, r"'label' is -1, not 0 to 1 \(an unlabelled split\?\)"),
        ("boolq", {"label": True}, "'label' is True"),
        ("boolq", {"passage": None}, "'passage' is empty or no string"),
        ("hellaswag", {"label": ""}, "'label' is ''"),
        ("hellaswag", {"label": "4"}, "not 0 to 3"),
        ("hellaswag", {"endings": ["a", "", "b", "c"]}, "'endings' must be"),
        ("hellaswag", {"ctx_b": None}, "'ctx_b' is no string"),
        ("piqa", {"sol2": ""}, "'sol2' is empty"),
        ("winogrande", {"answer": ""}, "not the string"),
        ("winogrande", {"answer": 1}, "not the string"),
        ("winogrande", {"sentence": "No blank."}, "no _ to fill"),
    ],
)
def test_records_that_lm_eval_would_score_as_wrong(
    tmp_path: Path, task: str, change: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path, {task: [DATA[task][0], DATA[task][1] | change]})
    with pytest.raises(ForgetkitError, match=rf"{SPECS[task].split}.jsonl:2: .*{message}"):
        read_task(task, task_files(folder, [task])[task])


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_field_is_named(tmp_path: Path, task: str) -> None:
    for field in SPECS[task].fields:
        folder = write(tmp_path, {task: [{k: v for k, v in DATA[task][0].items() if k != field}]})
        with pytest.raises(ForgetkitError, match=rf"jsonl:1: no field {field!r} - records of {task} have"):
            read_task(task, task_files(folder, [task])[task])


def test_labels_become_numbers_and_other_fields_are_dropped(tmp_path: Path) -> None:
    folder = write(tmp_path, {"boolq": [DATA["boolq"][0] | {"label": "1", "idx": [1, "x"]}]})
    assert read_task("boolq", task_files(folder, ["boolq"])["boolq"]) == [DATA["boolq"][0]]


# --- through lm-eval -------------------------------------------------------------------------------------


def pairs(task: str, record: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str], int]:
    """(context, answer) of every option, the option's text, and the gold index: written from the tasks' papers."""
    if task in ("arc_challenge", "arc_easy", "openbookqa"):
        texts = record["choices"]["text"]
        context = record["question_stem"] if task == "openbookqa" else f"Question: {record['question']}\nAnswer:"
        return [(context, f" {t}") for t in texts], texts, record["choices"]["label"].index(record["answerKey"])
    if task == "boolq":
        context = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
        return [(context, " no"), (context, " yes")], ["no", "yes"], record["label"]
    if task == "piqa":
        texts = [record["sol1"], record["sol2"]]
        return [(f"Question: {record['goal']}\nAnswer:", f" {t}") for t in texts], texts, record["label"]
    if task == "winogrande":
        before, after = record["sentence"].split("_")
        texts = [before + record["option1"], before + record["option2"]]
        return [(t, f" {after.strip()}") for t in texts], texts, int(record["answer"]) - 1
    clean = {
        "play [title] there.": "play. there.",  # " [title]" becomes ". ", other brackets go, double blanks once
        "eat the [step] hills.": "eat the hills.",
        "met a witch  of bran.": "met a witch of bran.",
    }
    texts = [clean.get(ending, ending) for ending in record["endings"]]
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}".strip()
    return [(context, f" {t}") for t in texts], texts, int(record["label"])


def slow(model: PreTrainedModel, context: str, answer: str) -> float:
    """log p(answer | context): one pair, one forward pass, no batch."""
    whole, head = (toys.tokenizer().encode(text, add_special_tokens=False) for text in (context + answer, context))
    with torch.no_grad():
        log_p = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
    return sum(float(log_p[i - 1, whole[i]]) for i in range(len(head), len(whole)))


@needs_lm_eval
def test_every_task_against_a_slow_computation(tmp_path: Path) -> None:
    model = tiny()
    found = measure(write(tmp_path), model)
    assert list(found) == list(TASKS)
    for task, own in found.items():
        expected = [pairs(task, record) for record in DATA[task]]
        slow_sums = [[slow(model, *pair) for pair in one] for one, _, _ in expected]
        np.testing.assert_allclose(own.log_likelihoods, np.concatenate(slow_sums), rtol=1e-4, err_msg=task)
        assert own.gold.tolist() == [gold for *_, gold in expected], task
        assert own.options.tolist() == [len(one) for one in slow_sums]
        acc = [float(int(np.argmax(s)) == gold) for s, (*_, gold) in zip(slow_sums, expected, strict=True)]
        assert own.acc.tolist() == acc, task
        if own.acc_norm is not None:
            norm = [np.divide(s, [len(t) for t in texts]) for s, (_, texts, _) in zip(slow_sums, expected, strict=True)]
            right = [float(int(np.argmax(s)) == gold) for s, (*_, gold) in zip(norm, expected, strict=True)]
            assert own.acc_norm.tolist() == right, task
        assert (own.truncated, own.nonfinite) == (0, 0)
        assert len(set(own.items)) == len(DATA[task])
    assert {task for task, own in found.items() if own.acc_norm is None} == {"boolq", "winogrande"}


@needs_lm_eval
def test_acc_and_acc_norm_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities are dictated: -2 for 1 character, -3 for 4: acc takes the first, acc_norm the second."""
    from lm_eval.api.model import LM

    class Dictated(LM):  # type: ignore[misc]
        cut: set[tuple[str, str]] = set()  # noqa: RUF012
        label = ""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [({" x": -2.0, " long": -3.0, " y": -4.0}[one.args[1]], False) for one in requests]

        def loglikelihood_rolling(self, requests: list[Any]) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: list[Any]) -> Any:
            raise NotImplementedError

    monkeypatch.setattr(utility, "_harness", lambda *_: Dictated())
    choices = {"text": ["x", "long", "y"], "label": ["A", "B", "C"]}
    records = [{"question": f"q{i}", "choices": choices, "answerKey": key} for i, key in enumerate("ABCA")]
    own = measure(write(tmp_path, {"arc_easy": records}), tasks=["arc_easy"])["arc_easy"]
    assert own.acc.tolist() == [1, 0, 0, 1] and own.acc_norm is not None and own.acc_norm.tolist() == [0, 1, 0, 0]
    assert own.series("acc_norm").mean == 0.25
    assert own.series("acc_norm").error == pytest.approx((0.75 / 3) ** 0.5 / 2)  # (3 x .0625 + .5625) / 3, over sqrt 4

    from lm_eval.api.metrics import mean_stderr

    assert own.series().error == pytest.approx(mean_stderr([1.0, 0.0, 0.0, 1.0]))


@needs_lm_eval
def test_numbers_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    write(tmp_path)
    alone, together = measure(tmp_path, batch_size=1), measure(tmp_path, batch_size=16)
    for task in TASKS:
        np.testing.assert_allclose(alone[task].log_likelihoods, together[task].log_likelihoods, rtol=1e-5)
        assert alone[task].items == together[task].items


@needs_lm_eval
def test_log_probabilities_of_a_bf16_model_are_not_rounded(tmp_path: Path) -> None:
    model = tiny().to(torch.bfloat16)
    own = measure(write(tmp_path, {"piqa": DATA["piqa"]}), model, tasks=["piqa"])["piqa"]
    expected = [slow(model, *pair) for record in DATA["piqa"] for pair in pairs("piqa", record)[0]]
    np.testing.assert_allclose(own.log_likelihoods, expected, rtol=5e-3)  # bf16 forward passes differ by batch
    rounded = torch.tensor(own.log_likelihoods).to(torch.bfloat16).double().numpy()
    assert (own.log_likelihoods != rounded).any()


@needs_lm_eval
def test_a_dead_model_is_not_finite_and_a_mute_one_ties(tmp_path: Path) -> None:
    write(tmp_path)
    dead, mute = tiny(), tiny()
    with torch.no_grad():
        dead.model.norm.weight.fill_(float("nan"))
        mute.model.norm.weight.zero_()
    own = measure(tmp_path, dead, tasks=["boolq"])["boolq"]
    assert own.nonfinite == 3 and not own.series().finite and not own.above_floor()
    assert utility_rows({"boolq": own})[0]["value"] is None
    # every token has probability 1/V, and both orders of a sentence have as many tokens
    tied = measure(tmp_path, mute, tasks=["winogrande"])["winogrande"]
    np.testing.assert_allclose(tied.log_likelihoods[:2], tied.log_likelihoods[0])
    assert tied.ties == 2 and tied.acc.tolist() == [0.0, 1.0]  # the first option, whatever is right


@needs_lm_eval
def test_cut_contexts_are_counted_and_long_answers_refused(tmp_path: Path) -> None:
    records = [DATA["boolq"][0] | {"passage": "The cat is grey. " * 20 + "z" * i} for i in range(200)]
    sizes = [
        max(len(toys.tokenizer().encode("".join(pair), add_special_tokens=False)) for pair in pairs("boolq", one)[0])
        for one in records
    ]
    own = measure(write(tmp_path, {"boolq": records}), tasks=["boolq"])["boolq"]
    assert {256, 257, 258} <= set(sizes)  # 256 fit, and the last token of an answer is never an input
    assert own.truncated == sum(size > 257 for size in sizes) and own.nonfinite == 0
    with pytest.raises(ForgetkitError, match="does not fit into a window of 256"):
        measure(write(tmp_path, {"piqa": [DATA["piqa"][0] | {"sol1": "turn the knob " * 200}]}), tasks=["piqa"])


@needs_lm_eval
def test_a_limit_takes_items_spread_over_the_file(tmp_path: Path) -> None:
    records = [DATA["boolq"][0] | {"question": f"is it {i}", "label": i % 2} for i in range(10)]
    write(tmp_path, {"boolq": records})
    whole, part = measure(tmp_path, tasks=["boolq"])["boolq"], measure(tmp_path, tasks=["boolq"], limit=4)["boolq"]
    assert part.items == tuple(whole.items[i] for i in (1, 3, 6, 8)) and part.gold.tolist() == [1, 1, 0, 0]
    assert measure(tmp_path, tasks=["boolq"], limit=99)["boolq"].items == whole.items
    with pytest.raises(ForgetkitError, match="different items"):
        utility_delta(part, whole)


@needs_lm_eval
def test_no_network_no_cache_no_noise_and_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    calls: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        calls.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("FORGETKIT_QUIET", "1")
    tokenizer = copy.deepcopy(toys.tokenizer())
    tokenizer.pad_token = None
    model = tiny()
    before = generators()
    measure_utility(model, tokenizer, ["boolq", "hellaswag"], data_dir=write(tmp_path / "data"))
    assert generators() == before
    assert not calls
    assert not (tmp_path / "cache").exists()
    assert capfd.readouterr() == ("", "")
    assert tokenizer.pad_token is None
    assert datasets.config.HF_HUB_OFFLINE is False


def generators() -> list[object]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state(legacy=False))]


@needs_lm_eval
def test_json_arrays_and_parquet_give_the_same_as_lines(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    write(tmp_path / "lines", {"arc_easy": ARC})
    for name in ("array", "parquet"):
        (tmp_path / name / "arc_easy").mkdir(parents=True)
    (tmp_path / "array" / "arc_easy" / "test.json").write_text(json.dumps(ARC, indent=1))
    table = pyarrow.Table.from_pylist([record | {"id": i} for i, record in enumerate(ARC)])
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "arc_easy" / "test-00000-of-00001.parquet")
    found = [measure(tmp_path / name, tasks=["arc_easy"])["arc_easy"] for name in ("lines", "array", "parquet")]
    for other in found[1:]:
        assert other.items == found[0].items
        assert other.log_likelihoods.tolist() == found[0].log_likelihoods.tolist()


@needs_lm_eval
def test_end_to_end_with_a_baseline_and_the_cache(tmp_path: Path) -> None:
    write(tmp_path)
    baseline, other = measure(tmp_path), measure(tmp_path, tiny(seed=1))
    rows = utility_rows(other, baseline)
    assert [(row["task"], row["metric"]) for row in rows] == [
        (task, metric) for task in TASKS for metric in other[task].metrics
    ]
    for row in rows:
        values = [getattr(one[row["task"]], row["metric"]).mean() for one in (other, baseline)]
        assert row["delta"]["value"] == pytest.approx(values[0] - values[1])
        assert row["n"] == row["delta"]["n"] == len(DATA[row["task"]])
    json.dumps(rows, allow_nan=False)
    store = Store(tmp_path / "store")
    for task, own in baseline.items():
        store.put({"task": task}, own.to_part())
        kept = store.get({"task": task})
        assert kept is not None
        again = TaskScores.from_part(kept)
        assert utility_rows({task: again}, {task: own}) == utility_rows({task: own}, {task: own})
        assert again.items == own.items and (again.log_likelihoods == own.log_likelihoods).all()
