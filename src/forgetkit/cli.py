"""The command line: one subcommand per thing a person wants. No logic, and no torch until a command needs it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from forgetkit import __version__
from forgetkit.core import distributed
from forgetkit.core.errors import ForgetkitError, Interrupted

app = typer.Typer(
    help="Make a language model un-read a text, and say honestly how far that holds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
anchors_app = typer.Typer(help="The dictionary of anchor terms.", no_args_is_help=True, rich_markup_mode=None)
relabel_app = typer.Typer(help="The alternative labels.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(anchors_app, name="anchors")
app.add_typer(relabel_app, name="relabel")
bench_app = typer.Typer(
    help="Benchmarks in which the right answer is known.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(bench_app, name="bench")

Model = Annotated[str, typer.Option(help="Folder or cached Hub id of a causal language model.")]
Target = Annotated[list[Path], typer.Option(help="Text to un-read: files or folders. May be repeated.")]
Retain = Annotated[list[Path] | None, typer.Option(help="Text whose knowledge must stay. May be repeated.")]
Out = Annotated[Path, typer.Option(help="Run folder; the same command again resumes.")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings (see `forgetkit settings`).")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, section.key=value. May be repeated.")]
Preset = Annotated[str, typer.Option(help="'default', or 'paper': arXiv 2310.02238 to the letter.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def _settings(config: Path | None, overrides: list[str] | None, preset: str = "default") -> Any:
    from forgetkit.core.config import load_settings

    return load_settings(config, overrides or [], preset)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def _say(event: Any) -> None:
    if os.environ.get("FORGETKIT_QUIET"):
        return
    words = {
        "begins": "...",
        "kept": "kept, nothing it is made from has changed",
        "done": f"done in {event.seconds:.0f} s",
    }
    typer.echo(f"{event.stage}: {words[event.what]}", err=True)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"forgetkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Make a language model un-read a text, and say honestly how far that holds."""


@app.command()
def run(
    model: Model,
    target: Target,
    out: Out,
    retain: Retain = None,
    config: Config = None,
    overrides: Set = None,
    preset: Preset = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="As `forgetkit plan`: print the plan alone.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make MODEL un-read TARGET: every stage, resumable; the model is in OUT/5-unlearned/model."""
    _hush(quiet)
    settings = _settings(config, overrides, preset)
    if not dry_run:
        distributed.check_world(settings.world_size)  # before the libraries are loaded
    from forgetkit.pipeline import Inputs

    inputs = Inputs(model, tuple(target), tuple(retain or ()))
    if dry_run:
        _plan(inputs, settings, as_json)
        return
    _run_and_tell(inputs, settings, out, as_json)


@app.command("plan")
def plan_run(
    model: Model,
    target: Target,
    retain: Retain = None,
    out: Annotated[Path | None, typer.Option(help="Ignored: a plan writes nothing.")] = None,
    config: Config = None,
    overrides: Set = None,
    preset: Preset = "default",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what `run` with these arguments would compute, need and take here, what fits, and what to set if it does not.

    Memory and FLOPs follow from the model's configuration. Time comes from about two seconds of timing on this machine;
    where repeated timings disagree it is withheld, and the plan says so.
    """
    _hush(quiet)
    settings = _settings(config, overrides, preset)
    from forgetkit.pipeline import Inputs

    _plan(Inputs(model, tuple(target), tuple(retain or ())), settings, as_json)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    config: Config = None,
    overrides: Set = None,
    preset: Preset = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="As `forgetkit plan`: print the plan alone.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run on the bundled model and three bundled Oz books, beside a twin that never read them."""
    _hush(quiet)
    from forgetkit import demo as bundled

    settings = bundled.apply(_settings(config, overrides, preset))
    from forgetkit.pipeline import Inputs

    inputs = Inputs(str(bundled.MODEL), bundled.target(), (bundled.RETAIN,))
    if dry_run:
        _plan(inputs, settings, as_json)
        return
    _run_and_tell(inputs, settings, out, as_json)


def _run_and_tell(inputs: Any, settings: Any, out: Path, as_json: bool) -> None:
    from forgetkit import pipeline

    results = pipeline.run(inputs, settings, out, on_event=_say)
    if not distributed.is_main():
        return
    if as_json:
        _print_json(results)
        return
    _table(results)
    told = json.loads((out / "8-report" / "report.json").read_text())
    typer.echo(f"\n{' '.join(told['headline'].split())}")
    typer.echo(f"model:  {out / '5-unlearned' / 'model'}")
    typer.echo(f"report: {out / '8-report' / 'index.html'}")


def _plan(inputs: Any, settings: Any, as_json: bool) -> None:
    from forgetkit import pipeline
    from forgetkit.plan.render import render

    plan = pipeline.plan(inputs, settings)
    if as_json:
        _print_json(plan)
    else:
        typer.echo(render(plan))


def _table(results: Any) -> None:
    from forgetkit.evaluate.compare import before_after_table, to_text

    _rich_table(to_text(before_after_table(results)))
    for role, model in results["models"].items():
        if model["health"]["status"] == "unhealthy":
            typer.echo(f"{role} is unhealthy: {'; '.join(model['health']['reasons'])}")
    _suite_tables(results)


def _rich_table(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 1000  # no line is cut or wrapped in a file
    console.print(table)


@bench_app.command("oz")
def bench_oz(
    out: Out = Path("runs/oz"),
    full: Annotated[bool, typer.Option("--full", help="All fifteen Oz books instead of three.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Measure this model, made by any method, instead of running ours.")
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(help="Ablation table: 'labels', 'training', or variants by name. May be repeated."),
    ] = None,
    config: Config = None,
    overrides: Set = None,
    preset: Preset = "default",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Unlearn Oz beside a twin that never read it: residuals, distance to retraining, label quality, controls."""
    _hush(quiet)
    settings = _settings(config, overrides, preset)
    distributed.alone("bench", settings.world_size)
    from forgetkit.bench import ablation, oz

    if ablate:
        told = ablation.ablate(out, settings, ablate, full=full, on_event=_say)
        rows = ablation.tables(told)
    else:
        told = oz.bench(out, settings, full=full, model=model, on_event=_say)
        rows = oz.tables(told)
    if as_json:
        _print_json(told)
        return
    for title, table in rows:
        typer.echo(f"\n{title}")
        _rich_table(table)


@app.command()
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders of text.")],
    model: Annotated[str | None, typer.Option(help="Count this model's tokens instead of words.")] = None,
    retain: Retain = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show what is read: documents, tokens, duplicates, encodings, first blocks as the model will see them."""
    settings = _settings(config, overrides)
    from forgetkit.corpus.inspect import inspect as look
    from forgetkit.corpus.inspect import render

    tokenizer = None
    if model:
        from forgetkit.core.models import load_tokenizer

        tokenizer = load_tokenizer(model, settings.model)
    report = look(paths, settings.corpus, tokenizer, retain or [])
    if as_json:
        _print_json(report)
    else:
        typer.echo(render(report))


@anchors_app.command("build")
def anchors_build(
    model: Model,
    target: Target,
    out: Out,
    retain: Retain = None,
    config: Config = None,
    overrides: Set = None,
    preset: Preset = "default",
    quiet: Quiet = False,
) -> None:
    """Run the stages up to the dictionary and stop, so that OUT/3-anchors/anchors.yaml can be edited."""
    _hush(quiet)
    settings = _settings(config, overrides, preset)
    from forgetkit import pipeline

    inputs = pipeline.Inputs(model, tuple(target), tuple(retain or ()))
    pipeline.run(inputs, settings, out, until="3-anchors", on_event=_say)
    if distributed.is_main():
        typer.echo(f"edit {out / '3-anchors' / 'anchors.yaml'}, then: forgetkit run with the same arguments")


def _dictionary(path: Path) -> Any:
    from forgetkit.anchors.dictionary import Dictionary

    inside = path / "3-anchors" / "anchors.yaml"
    return Dictionary.load(inside if path.is_dir() else path)


@anchors_app.command("lint")
def anchors_lint(
    path: Annotated[Path, typer.Argument(help="A run folder, or an anchors.yaml.")],
    target: Annotated[list[Path] | None, typer.Option(help="Target text; default: the run's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find entries that would do harm: identity maps, collisions, common words, terms that do not occur."""
    from forgetkit.anchors.dictionary import lint

    if target:
        from forgetkit.corpus.readers import read_paths

        texts = [d.text for d in read_paths(target, _settings(None, None).corpus)]
    elif path.is_dir():
        from forgetkit import corpus

        texts = [d.text for d in corpus.load(path / "1-corpus")[0].documents]
    else:
        raise ForgetkitError("no target text", where=str(path), remedy="add --target, or give a run folder")
    findings = lint(_dictionary(path), texts)
    if as_json:
        _print_json([{"level": f.level, "term": f.term, "message": f.message} for f in findings])
    else:
        for f in findings:
            typer.echo(f"{f.level}: {f.term}: {f.message}")
        typer.echo(f"{sum(f.level == 'error' for f in findings)} errors, {len(findings)} findings")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


@anchors_app.command("show")
def anchors_show(
    path: Annotated[Path, typer.Argument(help="A run folder, or an anchors.yaml.")],
    most: Annotated[int, typer.Option(help="Rows to print.")] = 40,
    as_json: AsJson = False,
) -> None:
    """Print the dictionary, best-scored terms first."""
    dictionary = _dictionary(path)
    if as_json:
        _print_json([a.model_dump(mode="json") for a in dictionary.anchors])
        return
    shown = sorted(dictionary.anchors, key=lambda a: -a.score)[:most]
    rows = [[a.term, a.counterpart, a.kind, str(a.count), f"{a.score:.1f}", "yes" if a.keep else "no"] for a in shown]
    _rich_table([["term", "counterpart", "kind", "count", "score", "keep"], *rows])
    typer.echo(f"{len(dictionary.kept)} kept of {len(dictionary.anchors)}")


@relabel_app.command("preview")
def relabel_preview(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")], as_json: AsJson = False
) -> None:
    """Show a few passages with the original tokens and their alternative labels side by side."""
    path = run_folder / "4-labels" / "preview.json"
    if not path.exists():
        raise ForgetkitError("no labels yet", where=str(run_folder), remedy="forgetkit run makes them")
    data = json.loads(path.read_text())
    if as_json:
        _print_json(data)
        return
    from rich.console import Console

    from forgetkit.report.preview import read_blocks, terminal

    console = Console(markup=False, highlight=False)
    console.print(terminal(read_blocks(data), width=console.width))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="The model to measure; it need not be forgetkit's.")],
    out: Out,
    target: Annotated[
        list[Path] | None, typer.Option(help="Text that was un-read; default: the data folder's (MUSE, TOFU).")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The model before unlearning.")] = None,
    reference: Annotated[str | None, typer.Option(help="A model that never read the target.")] = None,
    retain: Retain = None,
    heldout: Annotated[list[Path] | None, typer.Option(help="Text of neither; default: bundled.")] = None,
    neighbour: Annotated[list[Path] | None, typer.Option(help="Text close to the target that must stay.")] = None,
    holdout: Annotated[
        list[Path] | None, typer.Option(help="Text of the target's kind that no model was trained on (privacy).")
    ] = None,
    anchors: Annotated[Path | None, typer.Option(help="anchors.yaml to probe; default: found in the target.")] = None,
    probes: Annotated[Path | None, typer.Option(help="Folder of hand-made probes (familiarity, cloze).")] = None,
    suite: Annotated[
        str | None, typer.Option(help="Measures to add: paper, memorization, privacy or full (see docs/metrics.md).")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Utility task of suites paper and full; default: all seven. Repeatable.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder of the utility tasks' files, TOFU, MUSE or WMDP; or a Hub id of these.")
    ] = None,
    config: Config = None,
    overrides: Set = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what MODEL still knows of TARGET, and what it costs; writes OUT/results.json and OUT/index.html.

    Without --suite: anchor recall, familiarity and cloze probes, extraction strength, losses, distances, health. A
    suite adds: paper (familiarity, utility tasks through lm-eval), memorization, privacy (membership attacks), full
    (all of these, knowledge, and TOFU, MUSE, WMDP where the data folder holds them).
    """
    _hush(quiet)
    settings = _settings(config, overrides)
    distributed.alone("evaluate", settings.world_size)
    from forgetkit.standalone import measure

    chosen = settings.evaluate.model_copy(
        update={
            "reference": reference or settings.evaluate.reference,
            "heldout": tuple(heldout or settings.evaluate.heldout),
            "neighbour": tuple(neighbour or settings.evaluate.neighbour),
            "holdout": tuple(holdout or settings.evaluate.holdout),
            "anchors": anchors or settings.evaluate.anchors,
            "probes": probes or settings.evaluate.probes,
            "suite": suite or settings.evaluate.suite,
            "utility_tasks": tuple(task or settings.evaluate.utility_tasks),
            "data_dir": data_dir or settings.evaluate.data_dir,
        }
    )
    chosen_settings = settings.model_copy(update={"evaluate": chosen})
    results = measure(model, baseline, target or [], retain or [], chosen_settings, out)
    if as_json:
        _print_json(results)
        return
    _table(results)
    typer.echo(f"results: {out / 'results.json'}")
    typer.echo(f"page:    {out / 'index.html'}")


def _suite_tables(results: Any) -> None:
    from forgetkit.evaluate.compare import suite_notes, suite_tables, to_text

    for title, table in suite_tables(results):
        typer.echo(f"\n{title}")
        if table.rows:
            _rich_table(to_text(table))
    for note in suite_notes(results):
        typer.echo(note)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders or results.json files.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with a plot of forgetting vs utility.")] = None,
    forgetting: Annotated[
        str | None, typer.Option(help="Measure on the plot's forgetting axis, as named in the table.")
    ] = None,
    utility: Annotated[str | None, typer.Option(help="Measure on its utility axis.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put the results of several runs side by side."""
    from forgetkit.evaluate.compare import compare as side_by_side
    from forgetkit.evaluate.compare import to_csv, to_text

    table = side_by_side(runs)
    if html or forgetting or utility:
        from forgetkit.evaluate.pareto import page

        text = page(runs, table, forgetting, utility)
        if html:
            _write(html, text)
    if csv:
        _write(csv, to_csv(table))
    if as_json:
        _print_json({"columns": list(table.columns), "rows": [list(r) for r in table.rows]})
    else:
        _rich_table(to_text(table))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ForgetkitError(f"cannot be written ({error.strerror})", str(path), "choose another file") from error


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, memory, disk, bf16, GPU, bundled files."""
    from forgetkit.core.doctor import checks

    found = checks()
    if as_json:
        _print_json([c._asdict() for c in found])
    else:
        for c in found:
            typer.echo(f"{c.status:>4}  {c.name}: {c.found}" + (f" - {c.remedy}" if c.remedy else ""))
    if any(c.status == "fail" for c in found):
        raise typer.Exit(1)


@app.command("settings")
def show_settings(config: Config = None, overrides: Set = None, preset: Preset = "default") -> None:
    """Print every setting with its meaning, as a YAML file that --config takes."""
    from forgetkit.core.config import dump_settings

    typer.echo(dump_settings(_settings(config, overrides, preset)))


def _hush(quiet: bool) -> None:
    if quiet:
        os.environ["FORGETKIT_QUIET"] = "1"


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def main() -> None:
    """Entry point: user mistakes are one line and exit code 2, signals 130 or 143 with the command that resumes."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except ForgetkitError as error:
        if isinstance(error, Interrupted):
            _resume_hint(error.exit_code)
        if distributed.tells():
            typer.echo(f"error: {error}", err=True)
        if distributed.world() > 1:
            _end(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _resume_hint(130)


def _resume_hint(code: int) -> NoReturn:
    if distributed.tells():
        command = shlex.join(["forgetkit", *sys.argv[1:]]) if distributed.world() == 1 else "the same launcher command"
        typer.echo(f"stopped; what was reached is kept. To go on: {command}", err=True)
    _end(code)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything of ours is closed by now. Tearing the interpreter down while a library's threads still run can abort
    # the process, which would hide the exit code.
    os._exit(code)
