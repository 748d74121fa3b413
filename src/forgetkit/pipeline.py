"""READ FIRST: the whole method on one page. Each stage makes one folder of the run from the folders before it.

    1-corpus      read, clean and cut the texts into blocks                    corpus/
    2-reinforced  Component 1: train further on the target                     reinforce.py
    3-anchors     Component 2a: the dictionary, which a person may edit        anchors/
    4-labels      Components 2b-2d: translate, align, combine, keep consistent relabel/
    5-unlearned   Component 3: fine-tune on the labels                         finetune.py, methods/
    6-evaluation  before, after, along the way, beside the truth               evaluate/
    8-report      one HTML page                                                report/

Stages never call each other. A stage is done again exactly when what it is made from has changed: its own settings,
the stages it reads, the input files, the seed, the dtype, the device or the number of threads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from forgetkit import __version__, corpus, finetune, reinforce
from forgetkit.anchors.build import build_dictionary
from forgetkit.anchors.dictionary import Dictionary, merge_edits
from forgetkit.core import artifacts, distributed, lora, models
from forgetkit.core.compact import check_available
from forgetkit.core.config import dump_settings, settings_from
from forgetkit.core.errors import ForgetkitError, Interrupted
from forgetkit.core.heap import give_back
from forgetkit.core.provenance import pin_threads, seed_everything, versions
from forgetkit.core.sharded import check_shards
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import input_files, read_paths
from forgetkit.evaluate.data import data_digest, load_data
from forgetkit.evaluate.judge import make_judge
from forgetkit.evaluate.probes import load_probes, probe_files
from forgetkit.evaluate.retraining import load_seeds
from forgetkit.evaluate.run import evaluate
from forgetkit.methods import get as get_method
from forgetkit.plan.build import make_plan
from forgetkit.plan.fit import SHARED, refuse_impossible
from forgetkit.plan.work import Texts
from forgetkit.relabel.build import build_labels, load_labels
from forgetkit.relabel.preview import write_preview
from forgetkit.report import build as build_report
from forgetkit.settings import Section, Settings

ANCHORS, PROPOSED = "anchors.yaml", "proposed.yaml"
BUNDLED_HELDOUT = Path(__file__).parent / "demo" / "assets" / "heldout"
RETAIN_FOR_EVALUATION = 10
"""Every so many-th retain block is kept out of training and used to measure retain loss."""


@dataclass(frozen=True)
class Inputs:
    """What a run is about."""

    model: str
    target: tuple[Path, ...]
    retain: tuple[Path, ...] = ()

    def describe(self) -> dict[str, Any]:
        """As given by the user, for recognising a run folder."""
        return {"model": self.model, "target": [str(p) for p in self.target]}


@dataclass(frozen=True)
class Event:
    """What the pipeline tells its caller: a stage 'begins', is 'done' or is 'kept' from before."""

    stage: str
    what: str
    seconds: float = 0.0


class Context:
    """Everything stages share: inputs, settings, the run folder, and hashes computed once."""

    def __init__(self, inputs: Inputs, settings: Settings, run: Path) -> None:
        self.inputs, self.settings, self.run = inputs, settings, run
        self.threads = pin_threads(settings.threads)
        self.device = str(models.resolve_device(settings.model.device, settings.model.dtype))
        seed_everything(settings.seed)

    @cached_property
    def model(self) -> str:
        """The input model's folder; a Hub id is resolved once, here."""
        return str(models.check_source(self.inputs.model, self.settings.model))

    @cached_property
    def reference(self) -> str | None:
        """The folder of the model that never read the target, if there is one."""
        source = self.settings.evaluate.reference
        return str(models.check_source(source, self.settings.model)) if source else None

    @cached_property
    def tokenizer(self) -> Any:
        """The input model's tokenizer."""
        return models.load_tokenizer(self.model)

    @cached_property
    def pad_id(self) -> int:
        """Any id will do: padding stands on the right and is never counted."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 over the input model's files."""
        return models.model_fingerprint(self.model)

    def folder(self, stage: str) -> Path:
        """The stage's committed folder."""
        return self.run / stage

    def corpus(self) -> tuple[BlockedCorpus, BlockedCorpus | None]:
        """Target and retain text of 1-corpus."""
        return corpus.load(self.folder("1-corpus"))

    def dictionary(self) -> Dictionary:
        """The dictionary as it stands now, a person's edits included."""
        return Dictionary.load(self.folder("3-anchors") / ANCHORS)

    def pair(self, reinforced: bool) -> tuple[Any, Any | None]:
        """Baseline and, if `reinforced` and there is one, the reinforced model; one copy of the weights with LoRA."""
        baseline, folder = self.load_model(self.model), self.folder("2-reinforced")
        if not reinforced or not (folder / "model").exists():
            return baseline, None
        if (folder / "adapter").exists():
            return lora.pair(baseline, folder / "adapter")
        return baseline, self.load_model(folder / "model")

    def load_model(self, source: str | Path) -> Any:
        """A model in the compute dtype, in eval mode."""
        return models.load_model(str(source), self.settings.model)


@dataclass(frozen=True)
class Stage:
    """One step: what it is made from (`needs`, as values to be hashed) and what makes it."""

    name: str
    needs: Callable[[Context], dict[str, Any]]
    make: Callable[[Context, Path, Path], Any]
    """(context, folder to fill, work folder kept over restarts)."""
    mutable: tuple[str, ...] = ()
    exact: bool = True
    """Whether dtype, device and threads can change the result's bits."""

    @property
    def shared(self) -> bool:
        """Whether every rank takes part; the other stages rank 0 makes all alone, while the rest wait."""
        return self.name in SHARED


def run(
    inputs: Inputs,
    settings: Settings,
    out: Path,
    *,
    until: str = "8-report",
    on_event: Callable[[Event], None] = lambda _: None,
) -> dict[str, Any]:
    """Run every stage that is not done, in order, up to `until`; returns the evaluation's results ({} without).

    On `settings.world_size` ranks each calls this; rank 0 decides what is to be made, commits it and returns the
    results, the others take part in the stages that are `shared` and return {}.

    Raises:
        ForgetkitError: any mistake in the inputs; `out` belongs to other inputs or is in use; non-finite numbers;
            not as many processes as `settings.world_size` says, or they disagree.
        Interrupted: a signal came; what was reached is kept.
    """
    what = artifacts.hash_json([dataclasses.asdict(inputs), out, until, settings, versions()])
    distributed.join(settings.world_size, settings.model.device, what)
    if distributed.is_main():
        return _lead(inputs, settings, out, until, on_event)
    context = Context(inputs, settings, out)
    for stage in STAGES:
        _assist(stage, context)
        if stage.name == until:
            break
    return {}


def _lead(
    inputs: Inputs, settings: Settings, out: Path, until: str, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    """The run, as rank 0 or the only process does it."""
    with artifacts.run_lock(out):
        artifacts.clean_orphans(out)
        _claim(out, inputs)
        (out / "settings.yaml").write_text(dump_settings(settings))
        context = Context(inputs, settings, out)
        _check(context)
        for stage in STAGES:
            _ensure(stage, context, on_event)
            if stage.name == until:
                break
    if not (out / "6-evaluation").exists() or until < "6":
        return {}
    results: dict[str, Any] = json.loads((out / "6-evaluation" / "results.json").read_text())
    return results


def _check(context: Context) -> None:
    """Find a user's mistakes before hours of work, not after; reads no weights.

    Raises:
        ForgetkitError: the first one found.
    """
    settings = context.settings
    get_method(settings.finetune.method)
    for name in ("reinforce", "finetune"):
        training = getattr(settings, name)
        check_available(training.optimizer, context.device, f"{name}.optimizer")
        distributed.micro_batch(training.batch_blocks, training.accumulation, settings.world_size)
        check_shards(training, settings.world_size, name)
    for path in (settings.anchors.dictionary, settings.evaluate.anchors):
        if path is not None:
            Dictionary.load(path)
    if settings.evaluate.probes is not None:
        load_probes(settings.evaluate.probes)
        make_judge(settings.evaluate)
    if settings.evaluate.seeds is not None:
        load_seeds(settings.evaluate.seeds)
    load_data(settings.evaluate, settings.model)
    texts = (settings.evaluate.heldout, settings.evaluate.neighbour, settings.evaluate.holdout)
    for paths in (context.inputs.target, context.inputs.retain, *texts):
        if paths:
            input_files(paths)
    # Both are checked as they are resolved.
    _ = context.model, context.reference


def _ensure(stage: Stage, context: Context, on_event: Callable[[Event], None]) -> None:
    """Make the stage's folder unless it is there, whole, and made from the same things."""
    parents = stage.needs(context)
    fingerprint = fingerprint_of(stage, context, parents)
    if artifacts.find_complete(context.run, stage.name, fingerprint) is not None:
        distributed.broadcast(None)
        on_event(Event(stage.name, "kept"))
        return
    if stage.shared:
        _refuse_impossible(stage.name, context)
    on_event(Event(stage.name, "begins"))
    began = time.monotonic()
    work = artifacts.work_folder(context.run, stage.name, fingerprint)
    extra = {
        "seed": context.settings.seed,
        "threads": context.threads,
        "device": context.device,
        "ranks": distributed.world(),
        "versions": versions(),
        "settings": {k: v.model_dump(mode="json") for k, v in parents.items() if isinstance(v, Section)},
    }
    identities = {k: v for k, v in parents.items() if isinstance(v, str)}
    with artifacts.commit(context.run, stage.name, fingerprint, identities, extra, mutable=stage.mutable) as folder:
        distributed.broadcast((folder, work) if stage.shared else None)
        try:
            stage.make(context, folder, work)
        except KeyboardInterrupt as error:
            raise Interrupted(2) from error
        if stage.shared:
            distributed.barrier()
    give_back()
    on_event(Event(stage.name, "done", time.monotonic() - began))


def _assist(stage: Stage, context: Context) -> None:
    """`_ensure` on another rank than 0: take part in the stage exactly when rank 0 makes it and it is `shared`."""
    places: tuple[Path, Path] | None = distributed.broadcast(None)
    if places is not None:
        stage.make(context, *places)
        distributed.barrier()
        give_back()


def _refuse_impossible(stage: str, context: Context) -> None:
    """Refuse a stage that needs more memory than the machine has, with what fits instead."""
    target, retain = context.corpus()
    tokens = int((target.bounds[:, 2] - target.bounds[:, 1]).max()) + (target.bos_id is not None)
    with_retain = retain is not None and context.settings.relabel.retain != "none"
    refuse_impossible(stage, Path(context.model), context.settings, tokens, with_retain=with_retain)


def plan(inputs: Inputs, settings: Settings, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """What `run` would do, need and take (`plan.build.make_plan`); reads the texts as it would, keeps nothing.

    Raises:
        ForgetkitError: any mistake in the inputs that `run` would refuse at its start or while reading.
    """
    context = Context(inputs, settings, Path())
    _check(context)
    with tempfile.TemporaryDirectory(prefix="forgetkit-plan-") as folder:
        began = clock()
        corpus.build(inputs.target, inputs.retain, context.tokenizer, settings.corpus, Path(folder))
        seconds = clock() - began
        target, retain = corpus.load(Path(folder))
    texts = evaluation_texts(settings, context.tokenizer, retain)
    train_retain, _ = split_retain(retain)
    read = Texts(target, train_retain, texts, seconds)
    return make_plan(Path(context.model), read, settings, context.pad_id, context.threads, clock)


def fingerprint_of(stage: Stage, context: Context, parents: Mapping[str, Any]) -> str:
    """SHA-256 of everything the stage's result depends on."""
    machine = {
        "dtype": context.settings.model.dtype,
        "device": context.device.split(":")[0],
        "threads": context.threads,
    }
    return artifacts.hash_json(
        {
            "stage": stage.name,
            "schema": artifacts.SCHEMA,
            "forgetkit": __version__,
            "seed": context.settings.seed,
            "from": dict(parents),
            "machine": machine if stage.exact else {},
        }
    )


def _claim(out: Path, inputs: Inputs) -> None:
    """Refuse a folder that belongs to other inputs, or that is not a run folder at all."""
    path, mine = out / "run.json", inputs.describe()
    if path.exists():
        try:
            owner = json.loads(path.read_text())
        except ValueError:
            owner = {}
        if owner != mine:
            raise ForgetkitError(
                f"belongs to a run of model {owner.get('model')} on target {owner.get('target')}",
                where=str(out),
                remedy="choose another --out, or delete this folder",
            )
        return
    others = [p.name for p in out.iterdir() if p.name != ".lock"]
    if others:
        raise ForgetkitError(
            f"is not a run folder, and not empty (it holds {sorted(others)[0]})",
            where=str(out),
            remedy="choose a new or empty folder for --out",
        )
    path.write_text(json.dumps(mine, indent=1))


# ---- what each stage is made from, and what makes it ----


def _files(paths: Sequence[Path]) -> str:
    """One hash over the names and contents of all files under `paths`."""
    return artifacts.hash_json([[p.name, artifacts.hash_file(p)] for p in (input_files(paths) if paths else [])])


def _file(path: Path | None) -> str:
    """Hash of one file's content; '' for none. A missing one is told by whoever reads it."""
    return artifacts.hash_file(path) if path is not None and path.is_file() else ""


def _probes(folder: Path | None) -> str:
    """Hash of the probe files; '' for none."""
    files = probe_files(folder) if folder is not None else []
    return artifacts.hash_json([[p.name, artifacts.hash_file(p)] for p in files]) if files else ""


def _made(context: Context, stage: str) -> str:
    manifest = artifacts.read_manifest(context.folder(stage))
    assert manifest is not None, f"{stage} was not made before a stage that needs it"
    return manifest.fingerprint


def _meaning(context: Context) -> str:
    """The dictionary's effect: kept terms and counterparts. Other edits redo nothing."""
    return artifacts.hash_json([[a.term, a.kind, a.counterpart] for a in context.dictionary().kept])


def _make_corpus(context: Context, out: Path, work: Path) -> None:
    corpus.build(context.inputs.target, context.inputs.retain, context.tokenizer, context.settings.corpus, out)


def _make_reinforced(context: Context, out: Path, work: Path) -> None:
    target, _ = context.corpus()
    reinforce.run(
        context.model,
        target,
        context.settings.reinforce,
        context.settings.model,
        out,
        work=work,
        seed=context.settings.seed,
        pad_id=context.pad_id,
    )


def _make_anchors(context: Context, out: Path, work: Path) -> None:
    target, retain = context.corpus()
    settings = context.settings.anchors
    needs_models = settings.dictionary is None and (settings.model_signal or settings.rank_counterparts)
    baseline, reinforced = context.pair(settings.model_signal) if needs_models else (None, None)
    proposed = build_dictionary(
        target,
        retain,
        context.tokenizer,
        settings,
        baseline=baseline,
        reinforced=reinforced,
        work=work,
        seed=context.settings.seed,
    )
    proposed.save(out / PROPOSED)
    before = context.folder("3-anchors")
    if (before / ANCHORS).exists() and (before / PROPOSED).exists():
        proposed = merge_edits(Dictionary.load(before / PROPOSED), Dictionary.load(before / ANCHORS), proposed)
    if not proposed.kept:
        raise ForgetkitError(
            "no anchor term was found in the target",
            where="3-anchors",
            remedy="lower anchors.min_count or anchors.min_score, or give anchors.dictionary",
        )
    proposed.save(out / ANCHORS)


def _make_labels(context: Context, out: Path, work: Path) -> None:
    target, retain = context.corpus()
    settings = context.settings
    train_retain, _ = split_retain(retain)
    labels = work / "labels"  # shards outlive a kill there
    baseline, reinforced = context.pair(settings.relabel.uses_reinforced)
    build_labels(
        target,
        train_retain,
        context.dictionary(),
        context.tokenizer,
        baseline,
        reinforced,
        settings.relabel,
        labels,
        retain_blocks=int(len(target) * settings.relabel.max_retain_ratio) or 1,
    )
    if not distributed.is_main():
        return
    write_preview(labels / "preview.json", target, load_labels(labels)[0], context.tokenizer)
    shutil.copytree(labels, out, copy_function=os.link, dirs_exist_ok=True)


def _make_unlearned(context: Context, out: Path, work: Path) -> None:
    target, retain = context.corpus()
    labels, retain_labels = load_labels(context.folder("4-labels"))
    train_retain, _ = split_retain(retain)
    finetune.run(
        context.model,
        finetune.LabelledText(target, labels),
        finetune.LabelledText(train_retain, retain_labels) if train_retain and retain_labels else None,
        context.settings.finetune,
        context.settings.model,
        out,
        work=work,
        seed=context.settings.seed,
        pad_id=context.pad_id,
    )


def _make_evaluation(context: Context, out: Path, work: Path) -> None:
    target, retain = context.corpus()
    settings = context.settings.evaluate
    roles: dict[str, str | Path] = {
        "baseline": context.model,
        "unlearned": context.folder("5-unlearned") / "model",
    }
    if context.reference:
        roles["reference"] = context.reference
    snapshots = {
        int(p.name.removeprefix("step-")): p for p in (context.folder("5-unlearned") / "snapshots").glob("step-*")
    }
    evaluate(
        roles,
        target,
        Dictionary.load(settings.anchors) if settings.anchors else context.dictionary(),
        evaluation_texts(context.settings, context.tokenizer, retain),
        context.tokenizer,
        settings,
        context.settings.model,
        out,
        context.settings.seed,
        snapshots=snapshots,
        work=work,
        holdout=holdout_text(context.settings, context.tokenizer),
    )


def _make_report(context: Context, out: Path, work: Path) -> None:
    build_report(context.run, context.settings.report, out)


def split_retain(retain: BlockedCorpus | None) -> tuple[BlockedCorpus | None, BlockedCorpus | None]:
    """(blocks to train on, blocks to measure retain loss on): every tenth block is never trained on."""
    if retain is None or len(retain) < RETAIN_FOR_EVALUATION:
        return retain, None
    held = [i for i in range(len(retain)) if i % RETAIN_FOR_EVALUATION == RETAIN_FOR_EVALUATION - 1]
    kept = [i for i in range(len(retain)) if i % RETAIN_FOR_EVALUATION != RETAIN_FOR_EVALUATION - 1]
    return (
        dataclasses.replace(retain, bounds=retain.bounds[kept]),
        dataclasses.replace(retain, bounds=retain.bounds[held]),
    )


def evaluation_texts(settings: Settings, tokenizer: Any, retain: BlockedCorpus | None) -> dict[str, BlockedCorpus]:
    """The texts whose loss must not rise: held-out, neighbour, and the retain blocks not trained on."""
    texts: dict[str, BlockedCorpus] = {}
    paths = {
        "heldout": settings.evaluate.heldout or (BUNDLED_HELDOUT,),
        "neighbour": settings.evaluate.neighbour,
    }
    for name, given in paths.items():
        if given:
            documents = read_paths(given, settings.corpus)
            texts[name] = block_documents(documents, tokenizer, settings.corpus.block_tokens)
    _, held = split_retain(retain)
    if held is not None:
        texts["retain"] = held
    return texts


def holdout_text(settings: Settings, tokenizer: Any) -> BlockedCorpus | None:
    """Non-members of the membership attacks, where they were given as such."""
    if not settings.evaluate.holdout:
        return None
    documents = read_paths(settings.evaluate.holdout, settings.corpus)
    return block_documents(documents, tokenizer, settings.corpus.block_tokens)


_FILES = {"heldout", "neighbour", "holdout", "anchors", "reference", "probes", "seeds", "data_dir"}


def _without_paths(settings: Settings) -> dict[str, Any]:
    return settings.evaluate.model_dump(mode="json", exclude=_FILES)


STAGES: tuple[Stage, ...] = (
    Stage(
        "1-corpus",
        lambda c: {
            "target": _files(c.inputs.target),
            "retain": _files(c.inputs.retain),
            "tokenizer": models.tokenizer_fingerprint(c.model),
            "corpus": c.settings.corpus,
        },
        _make_corpus,
        exact=False,
    ),
    Stage(
        "2-reinforced",
        lambda c: {
            "model": c.model_hash,
            "1-corpus": _made(c, "1-corpus"),
            "reinforce": c.settings.reinforce,
        },
        _make_reinforced,
    ),
    Stage(
        "3-anchors",
        lambda c: {
            "model": c.model_hash,
            "1-corpus": _made(c, "1-corpus"),
            "2-reinforced": _made(c, "2-reinforced") if c.settings.anchors.model_signal else "",
            "given": _file(c.settings.anchors.dictionary),
            "anchors": c.settings.anchors,
        },
        _make_anchors,
        mutable=(ANCHORS,),
    ),
    Stage(
        "4-labels",
        lambda c: {
            "model": c.model_hash,
            "1-corpus": _made(c, "1-corpus"),
            "2-reinforced": _made(c, "2-reinforced") if c.settings.relabel.uses_reinforced else "",
            "3-anchors": _meaning(c),
            "relabel": c.settings.relabel,
        },
        _make_labels,
    ),
    Stage(
        "5-unlearned",
        lambda c: {"model": c.model_hash, "4-labels": _made(c, "4-labels"), "finetune": c.settings.finetune},
        _make_unlearned,
    ),
    Stage(
        "6-evaluation",
        lambda c: {
            "5-unlearned": _made(c, "5-unlearned"),
            "3-anchors": _file(c.settings.evaluate.anchors) or _meaning(c),
            "heldout": _files(c.settings.evaluate.heldout or [BUNDLED_HELDOUT]),
            "neighbour": _files(c.settings.evaluate.neighbour),
            "holdout": _files(c.settings.evaluate.holdout),
            "data": data_digest(c.settings.evaluate, c.settings.model),
            "reference": models.model_fingerprint(c.reference) if c.reference else "",
            "probes": _probes(c.settings.evaluate.probes),
            "seeds": _file(c.settings.evaluate.seeds),
            "evaluate": artifacts.hash_json(_without_paths(c.settings)),
        },
        _make_evaluation,
    ),
    Stage(
        "8-report",
        lambda c: {"6-evaluation": _made(c, "6-evaluation"), "report": c.settings.report},
        _make_report,
        exact=False,
    ),
)


def unlearn(
    model: str | Path,
    target: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    retain: str | Path | Sequence[str | Path] = (),
    settings: Settings | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make `model` un-read `target`: the whole pipeline as one call; the same call again resumes.

    Args:
        model: folder or cached Hub id of a causal language model.
        target, retain: files or folders.
        out: run folder; the unlearned model is `out/5-unlearned/model`.
        settings: `Settings`, or nested keys such as `{"finetune": {"epochs": 1}}`.

    Returns:
        The evaluation's results (docs/results_schema.md).

    Raises:
        ForgetkitError: as `run`.
    """
    chosen = settings if isinstance(settings, Settings) else settings_from(settings or {})
    return run(Inputs(str(model), _paths(target), _paths(retain)), chosen, Path(out))


def _paths(given: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    return (Path(given),) if isinstance(given, str | Path) else tuple(Path(p) for p in given)
