"""Generation as a feedback edge: the chosen token becomes the next one that is read, inside one loop.

The loop is made of two programs without time: a decode step, which yields logits, and a program that
chooses a token from them. What both keep from step to step is carried, in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...ir.graph import Graph, Node, make_node, rename
from ...ir.ops import OPS
from ...ir.types import TensorType
from ..program import NO_TOKEN, SAMPLING, STATE_PREFIX, Program
from .placed import Maker

_GOING, _LEFT = "generation.going", "generation.left"
_STATE, _TRANSITIONS = "state", "transitions"
_SHARED = ("token", "logits", "offset", "length")  # what the loop gives to the choosing program
_Nodes = dict[str, Node]


def derive_generation(
    decode: Program, choose: Program, *, token: str, logits: str, steps: int, stops: int, states: int = 0
) -> Program:
    """The program that makes up to ``steps`` tokens for each row in one call.

    ``token`` is the name of the decode step's input, ``logits`` that of its output. Inputs: the newest
    token of each row i32[B, 1], which has not been read; ``offset`` i32[B] as in every program; ``limit``
    i32[B], how many tokens to make at most (0: the row rests); ``stop`` i32[B, ``stops``], tokens that end
    a row (-1: none); the numbers of the rows, ``sampling.NAME``; states, those of the choosing program
    under ``state.sampling.NAME``. Results: ``tokens`` i32[B, ``steps``], filled up with ``NO_TOKEN``, and
    what else the choosing program yields, [B, ``steps``, …]. With ``states`` there are ``transitions``
    i32[``states``, V], an automaton over tokens that ends a row in its last state, and ``state`` i32[B],
    where each row begins. A negative token ends its row, too, and the
    last row ends the loop. The last token of a row has not been read when the program returns.

    What a further call behind this one takes is a result, too, so that it can be begun before anybody has
    looked at this one's tokens: ``newest`` i32[B, 1], ``NO_TOKEN`` where a row is over, ``offset`` and
    ``state``. A row whose newest token is negative rests, whatever its limit is.
    """
    rows, make = decode.rows, Maker(None, "generation")
    numbers = TensorType((rows,), "i32")
    ends = {"limit": numbers, "stop": numbers.with_shape((rows, stops))}
    if states:
        vocabulary = decode.graph.outputs[logits].tensor.static_shape[-1]
        ends |= {_STATE: numbers, _TRANSITIONS: numbers.with_shape((states, vocabulary))}
    outer = {**{name: _input(name, type_) for name, type_ in ends.items()}, **inputs_of(decode, choose)}
    kept = (token, "offset", *([_STATE] if states else []), *_updated(decode, choose))
    carried = {name: outer[name].tensor for name in kept}
    carried = {_GOING: TensorType((), "bool"), _LEFT: outer["limit"].tensor, **carried}
    inside = {name: _input(name, type_) for name, type_ in carried.items()}
    shared = {name: node for name, node in outer.items() if name not in (*carried, "limit")}
    weights = {node.name: node for node in decode.graph.parameters}
    inside |= {name: _input(name, node.tensor) for name, node in {**shared, **weights}.items()}
    body = Graph("step", tuple(inside.values()), (), _step(decode, choose, token, logits, inside))
    zero = make.integer(0)
    is_over = make("less", make.reshape(outer[token], (rows,), "newest.row"), zero, label="rests")
    left = make("where", is_over, zero, outer["limit"], label="left")
    longest = make("max", left, axes=(0,), label="longest")
    start = {_GOING: make("greater", longest, zero, label="going"), _LEFT: left}
    loop = make(
        "loop",
        *(start.get(name) or outer[name] for name in carried),
        *shared.values(),
        *weights.values(),
        label="loop",
        body=body.with_unique_names(),
        carries=len(carried),
        scanned=0,
        length=steps,
        early=True,
    )
    values = {name: make("part", loop, label=name, index=i) for i, name in enumerate(body.outputs)}
    values["tokens"] = make("add", values["tokens"], make.integer(NO_TOKEN), label="tokens")
    results = {name: node for name, node in values.items() if name not in carried}
    results |= {"newest": values[token], "offset": values["offset"]}
    results |= {name: values[name] for name in carried if name == _STATE or name.startswith(STATE_PREFIX)}
    graph = Graph(f"{decode.graph.name}.generate", tuple(outer.values()), decode.graph.parameters, results)
    held = (*decode.states, *(replace(s, name=SAMPLING + s.name) for s in choose.states))
    return Program("generate", graph.with_unique_names(), held, rows, steps, decode.capacity)


def _input(name: str, type_: TensorType) -> Node:
    return make_node(OPS["input"], (), {"type": type_}, name=name)


def prefixed(name: str) -> str:
    """What an input or state of the choosing program is called beside those of the decode step."""
    state = STATE_PREFIX if name.startswith(STATE_PREFIX) else ""
    return f"{state}{SAMPLING}{name.removeprefix(state)}"


def inputs_of(decode: Program, choose: Program) -> _Nodes:
    """The inputs of both programs by name, states last, but for lengths and logits."""
    given = {node.name: node for node in decode.graph.inputs if node.name != "length"}
    states = {name: given.pop(name) for name in tuple(given) if name.startswith(STATE_PREFIX)}
    for node in choose.graph.inputs:
        if node.name not in _SHARED:
            name = prefixed(node.name)
            (states if name.startswith(STATE_PREFIX) else given)[name] = _input(name, node.tensor)
    return given | states


def _updated(decode: Program, choose: Program) -> tuple[str, ...]:
    return (*decode.donated, *map(prefixed, choose.donated))


def _step(decode: Program, choose: Program, token: str, logits: str, inside: _Nodes) -> _Nodes:
    """One token for each row that goes on: what is carried, and what is yielded at this step."""
    rows, make = decode.rows, Maker(None, "generation")
    zero = make.integer(0)
    active = make("greater", inside[_LEFT], zero, label="active")
    length = make("cast", active, label="length", dtype="i32")
    newest = make("maximum", inside[token], zero, label="read")  # what a row that is over has is no token
    read = inlined(decode.graph, {**inside, token: newest, "length": length}, "")
    scores = as_f32(make, read[logits])
    shared = {"token": newest, "logits": scores, "offset": inside["offset"], "length": length}
    numbers = {
        node.name: inside[prefixed(node.name)] for node in choose.graph.inputs if node.name not in shared
    }
    chosen = inlined(choose.graph, {**shared, **numbers}, SAMPLING)
    column = make.reshape(active, (rows, 1), "column")
    fresh = make("where", column, chosen["token"], make.integer(NO_TOKEN), label="fresh")
    is_stop = make("cast", make("equal", inside["stop"], fresh, label="stops"), label="stopped", dtype="i32")
    stopped = make("max", is_stop, axes=(1,), label="stop")
    negative = make("less", make.reshape(fresh, (rows,), "row"), zero, label="negative")
    over = make("logical_or", make("greater", stopped, zero, label="ended"), negative, label="over")
    moved: _Nodes = {}
    if _STATE in inside:
        count, vocabulary = inside[_TRANSITIONS].tensor.static_shape
        at = make("multiply", inside[_STATE], make.integer(vocabulary), label="state.row")
        at = make("add", at, make("maximum", make.reshape(fresh, (rows,), "row"), zero, label="known"))
        table = make.reshape(inside[_TRANSITIONS], (count * vocabulary,), "transitions")
        following = make("take", table, at, label="following", axis=0)
        moved = {_STATE: make("where", active, following, inside[_STATE], label="state")}
        complete = make("equal", following, make.integer(count - 1), label="complete")
        over = make("logical_or", over, complete, label="over")
    left = make("where", over, zero, make("subtract", inside[_LEFT], length, label="fewer"), label="left")
    going = make("greater", make("max", left, axes=(0,), label="most"), zero, label="going")
    ending = make("where", make.reshape(over, (rows, 1), "over.column"), make.integer(NO_TOKEN), fresh)
    states = {name: node for name, node in read.items() if name.startswith(STATE_PREFIX)}
    states |= {prefixed(n): node for n, node in chosen.items() if n.startswith(STATE_PREFIX)}
    return {
        _GOING: going,
        _LEFT: left,
        token: make("where", column, ending, inside[token], label="newest"),
        "offset": make("add", inside["offset"], length, label="offset"),
        **moved,
        **states,
        "tokens": make("subtract", fresh, make.integer(NO_TOKEN), label="emitted"),  # 0 means none
        **{n: node for n, node in chosen.items() if n != "token" and not n.startswith(STATE_PREFIX)},
    }


def as_f32(make: Maker, logits: Node) -> Node:
    """Logits as the choosing program takes them."""
    return logits if logits.tensor.dtype == "f32" else make("cast", logits, label="logits", dtype="f32")


def inlined(graph: Graph, given: Mapping[str, Node], prefix: str) -> _Nodes:
    """The outputs of a graph over other inputs and weights, given by name."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op.name in ("input", "parameter"):
            new[node] = given[node.name]
            continue
        copied = rename(node, tuple(new[source] for source in node.sources), prefix + node.name)
        new[node] = replace(copied, scope=node.scope or prefix[:-1])
    return {name: new[node] for name, node in graph.outputs.items()}
