"""systolic view: a model in the browser."""

from __future__ import annotations

import importlib.util
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ...ir.errors import SystolicError
from .arguments import DEFAULT_MODEL, Batch, Capacity, ModelArgument, State, StateDtype

VIEWERS = ("page", "model-explorer")
INSTALL = "pip install 'systolic[viewer]', or pip install ai-edge-model-explorer"


def view(
    model: ModelArgument = DEFAULT_MODEL,
    viewer: Annotated[
        str | None,
        typer.Option("--in", help="page or model-explorer (default: model-explorer if it is installed)."),
    ] = None,
    stage: Annotated[str, typer.Option(help="The graph that is shown first: traced, decode, …")] = "traced",
    batch: Batch = None,
    capacity: Capacity = None,
    state: State = None,
    state_dtype: StateDtype = None,
) -> None:
    """Opens a model in the browser: in Google's Model Explorer if it is installed, else as a page."""
    from ..files import write_file
    from ..locate import open_model
    from ..options import options_for
    from ..stages import Stages
    from .model_explorer import write_model_explorer
    from .page import model_page

    is_installed = importlib.util.find_spec("model_explorer") is not None
    if viewer not in (None, *VIEWERS):
        raise SystolicError(f"--in must be one of {', '.join(VIEWERS)}, not {viewer!r}")
    if viewer == "model-explorer" and not is_installed:
        raise SystolicError(f"--in model-explorer needs Model Explorer: {INSTALL}")
    subject = open_model(model, capacity)
    options = options_for(
        subject, batch=batch or 1, capacity=capacity, state=state or "auto", state_dtype=state_dtype or "f32"
    )
    stages = Stages(subject, options, None)
    folder = Path(tempfile.mkdtemp(prefix="systolic-view-"))
    if viewer == "page" or not is_installed:
        file = folder / f"{subject.name}.html"
        write_file(file, model_page(stages, stage))
        print(file if webbrowser.open(file.as_uri()) else f"open {file} in a browser")
        return
    open_model_explorer(write_model_explorer(stages, stage, folder / f"{subject.name}.json"))


def open_model_explorer(files: tuple[Path, ...]) -> None:
    """Serves the graphs, the first file, with the values of the others, until it is interrupted."""
    import model_explorer

    config = model_explorer.config()
    config.add_model_from_path(str(files[0]))
    for file in files[1:]:
        config.add_node_data_from_path(str(file))
    model_explorer.visualize_from_config(config)
