"""systolic graph: a model at any stage on its way, what passes changed, and why a value is what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ir.errors import SystolicError
from ..files import write_file
from .arguments import DEFAULT_MODEL, Batch, Capacity, ModelArgument, State, StateDtype

if TYPE_CHECKING:
    from ..stages import Stages
    from .stage_costs import StageCosts
    from .views import View

Stage = Annotated[
    str,
    typer.Option(
        help="traced, the name of a pass, diff, states, prefill, decode, score, chunks, forms, stablehlo or "
        "numpy."
    ),
]
Format = Annotated[str, typer.Option(help="text, json, dot, svg, outline, html or model-explorer.")]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Full = Annotated[bool, typer.Option("--full", help="Every node; nothing is folded.")]
Expand = Annotated[list[str] | None, typer.Option(help="Show this scope (layers.3) on its own.")]
Grep = Annotated[str | None, typer.Option(help="Only nodes in whose lines this text occurs.")]
Around = Annotated[str | None, typer.Option(help="Only what lies around this node.")]
Depth = Annotated[int, typer.Option(help="How many edges --around goes.")]
Columns = Annotated[str | None, typer.Option(help="Add columns: bytes,state,work,cost (nanoseconds).")]
TargetName = Annotated[
    str | None,
    typer.Option(
        help="Predict costs on this target (`systolic targets`): of a diff, of chunks, or a column. "
        "--stage numpy: contractions as loops over its tiles."
    ),
]
Before = Annotated[str | None, typer.Option("--from", help="Show what changed since this stage …")]
After = Annotated[str | None, typer.Option("--to", help="… up to this one (default: the last pass).")]
Why = Annotated[str | None, typer.Option(help="Show which inputs and states reach this node, and how.")]
Out = Annotated[Path | None, typer.Option(help="Write to this file.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
Chunk = Annotated[int | None, typer.Option(help="Positions that prefill or emitted code reads.")]


def graph(
    model: ModelArgument = DEFAULT_MODEL,
    stage: Stage = "traced",
    format: Format = "text",
    as_json: Json = False,
    full: Full = False,
    expand: Expand = None,
    grep: Grep = None,
    around: Around = None,
    depth: Depth = 1,
    columns: Columns = None,
    target: TargetName = None,
    before: Before = None,
    after: After = None,
    why: Why = None,
    out: Out = None,
    force: Force = False,
    batch: Batch = None,
    capacity: Capacity = None,
    chunk: Chunk = None,
    state: State = None,
    state_dtype: StateDtype = None,
) -> None:
    """Prints a model at one stage: a graph, its states, a program, emitted code, or what passes changed."""
    from ..locate import open_model
    from ..options import options_for
    from ..stages import Stages
    from ..terminal import show
    from .stage_costs import StageCosts
    from .views import FILES, View

    view = View("json" if as_json else format, full, tuple(expand or ()), grep, around, depth)
    subject = open_model(model, capacity)
    options = options_for(
        subject,
        batch=batch or 1,
        capacity=capacity,
        chunk=chunk,
        state=state or "auto",
        state_dtype=state_dtype or "f32",
    )
    stages = Stages(subject, options, chunk)
    names = tuple(columns.split(",")) if columns else ()
    if view.format in FILES and out is None:
        raise SystolicError(f"--format {view.format} is for a file: name it with --out")
    if target and "cost" not in names and not (stage in ("diff", "chunks", "numpy") or before or after):
        raise SystolicError("--target is for --stage diff, chunks or numpy, or for --columns cost")
    costs = StageCosts.on(target, options.batch, options.capacity) if target else None
    report = render_report(stages, stage, view, (before, after), why, costs)
    if report is None and view.format == "model-explorer" and out is not None:
        from .model_explorer import write_model_explorer

        print("\n".join(map(str, write_model_explorer(stages, stage, out, force=force))))
        return
    text = render_graph(stages, stage, view, names, costs) if report is None else report
    if out is None:
        show(text)
    else:
        write_file(out, f"{text}\n", force=force)


def render_report(
    stages: Stages,
    stage: str,
    view: View,
    between: tuple[str | None, str | None] = (None, None),
    why: str | None = None,
    costs: StageCosts | None = None,
) -> str | None:
    """What is no graph: changes, states, code, or an explanation; None where a graph is asked for."""
    from ..stages import CODE
    from .reports import show_differences, show_states, show_why

    as_json = view.format == "json"
    if why is not None:
        _require(view, "--why", "an explanation", ("text", "json"))
        return show_why(stages, stage, why, as_json)
    if stage == "diff" or any(between):
        _require(view, "--stage diff", "a list of changes", ("text", "json"))
        return show_differences(stages, *between, as_json, costs)
    if stage == "states":
        _require(view, "--stage states", "a table", ("text", "json"))
        return show_states(stages.programs.states, as_json)
    if stage == "chunks":
        from .chunk_times import model_chunks

        _require(view, "--stage chunks", "a table", ("text", "json"))
        return model_chunks(stages, None if costs is None else costs.target, as_json)
    if stage == "forms":
        from .product_forms import model_forms

        _require(view, "--stage forms", "a table", ("text", "json"))
        return model_forms(stages, as_json)
    if stage in CODE:
        _require(view, f"--stage {stage}", "code", ("text",))
        return stages.code(stage, costs.target if costs and stage == "numpy" else None)
    return None


def render_graph(
    stages: Stages,
    stage: str,
    view: View,
    columns: tuple[str, ...] = (),
    costs: StageCosts | None = None,
) -> str:
    """The graph of a stage, or the page of all stages; ``SystolicError`` for what there is not."""
    from ...compiler.measures import measures
    from .page import model_page
    from .views import require_scopes

    if view.format == "html":
        require_scopes(next(iter(stages.passes.values())).graph, view.expand)
        return model_page(stages, stage, view.expand)
    shown = stages.graph(stage)
    derived = stages.passes.get(stage, stages.passes[stages.last_pass]).graph
    cost = None if costs is None else lambda: costs.measure(derived, shown)
    wanted = measures(columns, shown, stages.options.capacity, lambda: stages.states_of(stage), cost)
    return view.show(shown, wanted)


def _require(view: View, option: str, what: str, formats: tuple[str, ...]) -> None:
    if view.format not in formats:
        allowed = (
            f"its --format is {' or '.join(formats)}" if len(formats) > 1 else "its only --format is text"
        )
        raise SystolicError(f"{option} is {what}: {allowed}, not {view.format}")
