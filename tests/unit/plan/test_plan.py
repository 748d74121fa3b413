"""The plan as a whole: calibration that is told or withheld, what fits, what is recommended, and the command line."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from forgetkit import pipeline
from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.blocks import block_documents
from forgetkit.corpus.readers import Document
from forgetkit.plan import fit, rates
from forgetkit.plan.fit import Case, Machine
from forgetkit.plan.rates import NOISE_LIMIT, TooNoisy, settle, timed
from forgetkit.plan.render import amount, duration, render
from forgetkit.settings import Settings
from tests import toys
from tests.e2e.tiny import Tiny

GB = 10**9


def ticking(step: float = 1.0) -> Callable[[], float]:
    """A clock that shows one step more at every look."""
    return itertools.count(0.0, step).__next__


def shaken() -> Callable[[], float]:
    """A clock whose steps differ by up to a hundred times."""
    random_steps, now = random.Random(0), 0.0

    def look() -> float:
        nonlocal now
        now += 10 ** random_steps.uniform(-2, 0)
        return now

    return look


def test_agreeing_timings_give_their_median() -> None:
    assert settle([1.0, 1.1, 0.9, 1.05, 9.0], "work") == 1.05  # one interruption does no harm
    assert timed(lambda: None, "work", ticking(0.5)) == 0.5


def test_disagreeing_timings_are_told_and_not_averaged() -> None:
    seconds = [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(TooNoisy, match=r"calibration: timings of labelling differ by 60% .*try again when it is quiet"):
        settle(seconds, "labelling")
    edge = [1.0, 1.0, 1 + NOISE_LIMIT * 0.9, 1 + NOISE_LIMIT * 0.9]
    assert settle(edge, "labelling") > 1
    with pytest.raises(TooNoisy):
        timed(lambda: None, "work", shaken())


def test_a_burst_of_noise_gets_a_second_chance() -> None:
    lengths = iter([1.0, 5.0, 9.0, *[1.0] * 100])
    now, began = 0.0, False

    def clock() -> float:
        nonlocal now, began
        now += next(lengths) if began else 0.0
        began = not began
        return now

    assert timed(lambda: None, "work", clock) == 1.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("plan"))


def settings(tiny: Tiny, **changes: Any) -> Settings:
    from forgetkit.core.config import load_settings

    given = [f"{key}={value}" for key, value in changes.items()]
    return load_settings(tiny.config, [f"evaluate.heldout=[{tiny.retain}]", *given])


def inputs(tiny: Tiny) -> pipeline.Inputs:
    return pipeline.Inputs(str(tiny.model), (tiny.target,), (tiny.retain,))


def test_a_plan_under_noise_withholds_the_time_and_tells_the_rest(tiny: Tiny) -> None:
    plan = pipeline.plan(inputs(tiny), settings(tiny), shaken())
    assert plan["seconds"] is None
    assert all(row["seconds"] is None for row in [*plan["stages"], *plan["ways_to_finetune"]])
    assert "differ by" in plan["time_withheld"]
    assert plan["flops"] > 0
    assert plan["memory_bytes"] > 0
    text = render(plan)
    assert "time is not told: calibration: timings of" in text
    assert " s\n" not in text.split("recommended")[0]


def test_a_plan_says_what_the_run_then_does(tiny: Tiny) -> None:
    plan = pipeline.plan(inputs(tiny), settings(tiny), ticking())
    stages = {row["stage"]: row for row in plan["stages"]}
    assert list(stages) == [stage.name for stage in pipeline.STAGES]
    assert plan["seconds"] == pytest.approx(sum(row["seconds"] for row in plan["stages"]))
    assert plan["time_withheld"] is None
    assert plan["recommended"] == []
    assert plan["parameters"] == sum(p.numel() for p in toys.model("llama", 400, seed=1).parameters())
    out = tiny.root / "planned"
    pipeline.run(inputs(tiny), settings(tiny), out)
    summary = json.loads((out / "1-corpus" / "summary.json").read_text())
    assert (plan["tokens"], plan["blocks"]) == (summary["target"]["tokens"], summary["target"]["blocks"])
    for stage in ("2-reinforced", "5-unlearned"):
        assert stages[stage]["steps"] == len((out / stage / "log.jsonl").read_text().splitlines())
    labels = json.loads((out / "4-labels" / "summary.json").read_text())
    assert plan["retain_blocks"] == labels["retain"]["blocks"]
    written = labels["target"]["bytes"] + labels["retain"]["bytes"]
    assert stages["4-labels"]["written_bytes"] == pytest.approx(written, rel=0.25)
    weights = sum(p.stat().st_size for p in (out / "5-unlearned").rglob("*.safetensors"))
    assert stages["5-unlearned"]["written_bytes"] >= 0.9 * weights


def test_a_plan_leaves_nothing_behind(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = {p for p in tiny.root.rglob("*") if "planned" not in p.parts}
    pipeline.plan(inputs(tiny), settings(tiny), ticking())
    assert {p for p in tiny.root.rglob("*") if "planned" not in p.parts} == before
    assert not list(tmp_path.iterdir())


def case(**changes: Any) -> Case:
    """A model of some size, so that there is something to save."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "llama", vocab_size=4000, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4
    )
    return Case(config, Settings.model_validate(changes), 256, with_retain=True)


def machine(total: int) -> Machine:
    return Machine(torch.device("cpu"), total, total, 0)


def test_remedies_come_in_order_and_do_what_they_say() -> None:
    asked = case(finetune={"batch_blocks": 8, "accumulation": 2})
    full = machine(0).bytes_for(asked.need("5-unlearned"))
    seen: list[tuple[str, ...]] = []
    room = full
    while room > 0:
        remedy = asked.remedy("5-unlearned", machine(room), room)
        if remedy is None:
            break
        changes = dict(one.removeprefix("finetune.").split("=") for one in remedy)
        chosen = type(asked.settings.finetune).model_validate(asked.settings.finetune.model_dump() | changes)
        assert chosen.batch_blocks * chosen.accumulation == 16
        assert machine(room).bytes_for(asked.training(chosen)) <= room
        if not seen or seen[-1] != remedy:
            seen.append(remedy)
        room = int(room * 0.93)
    ways = [(" ".join(one), "batch_blocks" in " ".join(one)) for one in seen]
    assert seen[0] == ()
    assert "finetune.batch_blocks=4" in seen[1]
    order = ["gradient_checkpointing=true", "optimizer=adamw_8bit", "adapter=lora"]
    first = [next((i for i, (text, _) in enumerate(ways) if word in text), -1) for word in order]
    assert first[0] > 1
    assert first == sorted(first)
    assert asked.remedy("5-unlearned", machine(1000), 1000) is None


def test_a_batch_of_labels_that_does_not_fit_is_made_smaller() -> None:
    asked = case(relabel={"batch_blocks": 64})
    room = int(machine(0).bytes_for(asked.need("4-labels")) * 0.7)
    remedy = asked.remedy("4-labels", machine(room), room)
    assert remedy is not None
    assert remedy[0].startswith("relabel.batch_blocks=")
    assert int(remedy[0].split("=")[1]) < 64


def test_a_shortage_is_one_line_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = case(finetune={"batch_blocks": 64})
    need = machine(0).bytes_for(asked.need("5-unlearned"))
    problem = fit.shortage(asked, "5-unlearned", machine(need // 2), need // 2)
    assert problem is not None
    assert "5-unlearned: needs about" in str(problem)
    assert "what fits: --set finetune.batch_blocks=" in str(problem)
    assert fit.shortage(asked, "5-unlearned", machine(need), need) is None
    hopeless = fit.shortage(asked, "5-unlearned", machine(1000), 1000)
    assert "use a smaller model" in str(hopeless)


def test_a_run_refuses_what_cannot_fit_before_it_begins_and_keeps_what_is_done(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Machine, "here", lambda device: Machine(device, GB, GB, GB - 1000))
        told: list[str] = []
        with pytest.raises(ForgetkitError, match=r"2-reinforced: needs about 1.0 GB of memory") as refused:
            pipeline.run(inputs(tiny), settings(tiny), tmp_path / "r", on_event=lambda e: told.append(e.stage))
        assert refused.value.exit_code == 2
        assert set(told) == {"1-corpus"}
        plan = pipeline.plan(inputs(tiny), settings(tiny), ticking())
        assert plan["recommended"] is None
        assert "2-reinforced: needs about" in render(plan)
    assert (tmp_path / "r" / "1-corpus" / "MANIFEST.json").exists()
    # A near miss is none of its business: what is free may change while a stage runs.
    monkeypatch.setattr(Machine, "here", lambda device: Machine(device, GB, 1000, 0))
    pipeline.run(inputs(tiny), settings(tiny), tmp_path / "r", until="2-reinforced")


def test_a_large_model_is_timed_by_one_and_two_of_its_layers(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "WHOLE", 0)
    plan = pipeline.plan(inputs(tiny), settings(tiny), ticking())
    assert plan["time_withheld"] is None
    assert plan["seconds"] > 0
    one, two = (rates.Rates(*[value] * 9) for value in (1.0, 1.5))
    assert one.deeper(two, 10).finetune == 1 + 9 * 0.5
    assert two.deeper(one, 10).finetune == 1.5  # a layer that seems to cost less than nothing costs nothing


@pytest.mark.parametrize(("window", "new"), [(8, 7), (20, 16), (256, 16)])
def test_decoding_is_timed_within_the_models_window(window: int, new: int) -> None:
    net = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=window)).eval()
    sample = block_documents([Document("a", "a.txt", toys.TEXT, "", "utf-8", ())], toys.tokenizer(), 16)
    assert rates.Bench(net, sample, Settings(), 0, ticking()).decode() == pytest.approx(1 / new)


def test_what_cannot_be_foreseen_is_said(tiny: Tiny) -> None:
    plan = pipeline.plan(inputs(tiny), settings(tiny, **{"evaluate.suite": "memorization"}), ticking())
    assert plan["not_counted"] == ["the measures that suite memorization adds"]
    assert "not counted: the measures" in render(plan)


def test_the_command_and_the_dry_run_tell_the_same_and_write_nothing(tiny: Tiny, tmp_path: Path) -> None:
    arguments = tiny.arguments(tmp_path / "r")[1:]
    code, out, err = tiny.call("plan", *arguments, "--json")
    assert code == 0, err
    plan = json.loads(out)
    code, text, err = tiny.call("run", *arguments, "--dry-run")
    assert code == 0, err
    for row in plan["stages"]:
        assert row["stage"] in text
    assert text.strip().splitlines()[-1] == "nothing was done"
    assert text.strip().splitlines()[-2].startswith("recommended: ")
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tiny: Tiny) -> None:
    code, _, err = tiny.call("plan", *tiny.arguments()[1:], "--set", "model.device=cuda")
    assert code == 2
    assert "device 'cuda' is not available here" in err
    assert "Traceback" not in err


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (None, 0.25, 42.4, 600, 8000)] == ["not told", "0.2 s", "42 s", "10 min", "2.2 h"]
    assert [amount(n) for n in (2.5e6, 1e9, 3.2e13, 7.04e17)] == ["2.5 M", "1 G", "32 T", "704 P"]
