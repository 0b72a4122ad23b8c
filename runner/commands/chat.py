"""systolic chat: a conversation in the terminal, which can be interrupted, edited and steered."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ir.errors import SystolicError
from . import sampling_options as options
from .arguments import (
    DEFAULT_MODEL,
    Adapter,
    Backend,
    Capacity,
    Dtype,
    ModelArgument,
    Roll,
    State,
    StateDtype,
)

if TYPE_CHECKING:
    from ..conversation import Conversation
    from ..generate import Step

HELP = """\
/steer TEXT        the last answer goes on with TEXT, and with what the model says behind it
/go                the last answer goes on
/retry             another answer
/edit [TEXT]       replaces your last message (without TEXT: to be edited in the line) and answers it
/system [TEXT]     what the conversation begins with; the next answer reads it
/set NAME VALUE    a setting of generation, such as temperature 0.8
/history           all messages
/save FILE         writes them as JSON
/clear             begins anew
/quit              or Ctrl-D
Ctrl-C             interrupts an answer; what was said stays"""


def chat(
    model: ModelArgument = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="What the conversation begins with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.Repetition = None,
    seed: options.Seed = 0,
    backend: Backend = "xla",
    state: State = None,
    capacity: Capacity = None,
    dtype: Dtype = None,
    state_dtype: StateDtype = None,
    roll: Roll = "auto",
    adapter: Adapter = None,
) -> None:
    """Talks with a model; /help in the conversation lists what else can be done."""
    from ..conversation import Conversation
    from ..locate import only_adapter, open_executable

    executable = open_executable(
        model,
        backend,
        capacity=capacity,
        state=state,
        state_dtype=state_dtype,
        dtype=dtype,
        roll=roll,
        adapters=adapter or (),
    )
    settings = options.sampling_settings(
        executable.model,
        adapter=only_adapter(executable.model),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    conversation = Conversation(executable, system=system, **settings)
    if executable.model.chat_template is None:
        _note(
            f"{executable.model.name} has no chat template: it continues a transcript, User: … Assistant: …"
        )
    _note("/help lists what can be said beside messages.")
    with suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines, and remembers them
    while (line := _read_line()) is not None:
        if line.strip() and not _obey(conversation, line):
            break


def _obey(conversation: Conversation, line: str) -> bool:
    """Does what a line says; False for the end."""
    try:
        if not line.startswith("/"):
            _show(conversation, conversation.say(line))
            return True
        command, _, rest = line[1:].partition(" ")
        return _command(conversation, command, rest)
    except (SystolicError, OSError) as error:
        _note(f"systolic: error: {error}")
    except KeyboardInterrupt:  # the second one, while a call ran: its text is read again
        print()
    return True


def _command(conversation: Conversation, command: str, rest: str) -> bool:
    match command:
        case "quit" | "exit":
            return False
        case "help":
            print(HELP)
        case "steer":
            said = conversation.messages[-1:]
            joined = rest[:1].isalnum() and said and said[0]["content"][-1:].strip()
            sys.stdout.write(rest)
            _show(conversation, conversation.steer(f" {rest}" if joined else rest))
        case "go":
            _show(conversation, conversation.go_on())
        case "retry":
            _show(conversation, conversation.retry())
        case "edit":
            text = rest or _read_line(conversation.last_said or "")
            if text:
                _show(conversation, conversation.edit(text))
        case "system":
            conversation.set_system(rest)
        case "set":
            name, _, value = rest.partition(" ")
            conversation.change(**{name: _number(name, value)})
        case "history":
            print("\n".join(f"{m['role']}: {m['content'].strip()}" for m in conversation.messages))
        case "save":
            if not rest:
                raise SystolicError("/save needs the name of a file")
            conversation.save(Path(rest).expanduser())
        case "clear":
            conversation.clear()
        case _:
            raise SystolicError(f"there is no /{command}; /help lists what there is")
    return True


def _number(name: str, value: str) -> float | int:
    from dataclasses import fields

    from ..generate import Generation

    types = {field.name: field.type for field in fields(Generation)}
    if types.get(name) not in ("int", "float"):
        known = ", ".join(sorted(known for known, type_ in types.items() if type_ in ("int", "float")))
        raise SystolicError(f"/set knows {known}; not {name!r}")
    try:
        return int(value) if types[name] == "int" else float(value)
    except ValueError:
        raise SystolicError(f"{name} must be a number, not {value!r}") from None


def _show(conversation: Conversation, steps: Iterator[Step]) -> None:
    """Writes an answer while it is made; Ctrl-C ends it between two tokens, where nothing is lost."""
    with _interrupts() as interrupted:
        for step in steps:
            sys.stdout.write(step.text)
            sys.stdout.flush()
            if interrupted.is_set():
                break
    steps.close()  # type: ignore[attr-defined]  # what was said so far is kept now
    print()
    edit = conversation.last_edit
    if sys.stderr.isatty() and edit is not None:
        _note(f"{edit.kept} of {edit.length} positions were kept, {edit.recomputed} read")


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of raising KeyboardInterrupt; a second one raises it."""
    event = threading.Event()

    def on_interrupt(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _read_line(given: str = "") -> str | None:
    """A line of the user, which begins as ``given`` and can be edited; None at the end."""
    shown = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    try:
        with _prefilled(given):
            return input(shown)
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        if shown:
            print()
        return None


@contextmanager
def _prefilled(text: str) -> Iterator[None]:
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        yield
    finally:
        readline.set_startup_hook()


def _note(text: str) -> None:
    """What is said about the conversation, beside it."""
    dim = sys.stderr.isatty()
    print(typer.style(text, dim=True) if dim else text, file=sys.stderr)
