"""systolic serve: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ...ir.errors import SystolicError
from .arguments import DEFAULT_MODEL, Backend, Capacity, Dtype, ModelArgument, Roll, State, StateDtype


def serve(
    model: ModelArgument = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Where to listen; other than loopback needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="SYSTOLIC_API_KEY", help="The key that clients must send.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="How clients call the model (default: its own name).")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Requests that run at once (default: 8).")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are told to come again.")] = 256,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer that may be asked for (default: the capacity).")
    ] = None,
    max_body: Annotated[int, typer.Option(help="Largest request, in bytes.")] = 4 << 20,
    grace: Annotated[
        float, typer.Option(help="Seconds that answers get to end when the server does.")
    ] = 10.0,
    backend: Backend = "xla",
    state: State = None,
    capacity: Capacity = None,
    dtype: Dtype = None,
    state_dtype: StateDtype = None,
    roll: Roll = "auto",
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A peft adapter, called like a model; can be repeated."),
    ] = None,
) -> None:
    """Serves a model over HTTP, as OpenAI's clients expect it: docs/server.md."""
    try:
        from ..server.bodies import Limits
        from ..server.serve import listen, new_server
        from ..server.service import Service
    except ModuleNotFoundError as error:
        raise SystolicError(f"systolic serve needs {error.name}: pip install 'systolic[server]'") from None
    from ..files import is_compiled
    from ..locate import open_executable

    rows = 8 if batch is None and not is_compiled(model) else batch
    executable = open_executable(
        model,
        backend,
        batch=rows,
        capacity=capacity,
        state=state,
        state_dtype=state_dtype,
        dtype=dtype,
        roll=roll,
        choices=_named_adapters(adapter or ()),
    )
    longest = executable.options.capacity if max_tokens is None else max_tokens
    if longest < 1 or max_body < 1:
        raise SystolicError(f"--max-tokens and --max-body must be at least 1, not {min(longest, max_body)}")
    service = Service(executable, name=name, limits=Limits(longest, max_body=max_body), queue=queue)
    server = new_server(service, host=host, port=port, api_key=api_key, grace=grace)
    socket = listen(host, port)
    shown_host, shown_port = socket.getsockname()[:2]
    print(f"{service.name} at http://{shown_host}:{shown_port}/v1", file=sys.stderr, flush=True)
    server.run(sockets=[socket])


def _named_adapters(given: Sequence[str]) -> dict[str, Path]:
    """NAME=DIR of each; ``SystolicError`` for another form, or a name that is given twice."""
    named: dict[str, Path] = {}
    for text in given:
        name, separator, directory = text.partition("=")
        if not name or not separator or name in named:
            raise SystolicError(f"--adapter must be NAME=DIR, with another name for each, not {text!r}")
        named[name] = Path(directory)
    return named
