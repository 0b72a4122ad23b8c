"""The printed form, the JSON form and the drawing of graphs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pydot
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import systolic as sy
from systolic.ir.dumps.dot import ACCESS_COLOURS, to_dot
from systolic.ir.dumps.json_form import from_json, to_json
from systolic.ir.dumps.parse import parse_graph
from systolic.ir.dumps.text import print_graph, same
from systolic.ir.errors import GraphError, Location
from systolic.ir.graph import Graph, make_node
from systolic.ir.ops import OPS
from systolic.ir.types import DTYPES, TensorType, parse_type


def attention(token):
    """Two layers of grouped attention; the second sees the last eight positions."""
    x = sy.take(sy.parameter("embed", (32, 16)), token)
    for layer in range(2):
        with sy.scope(f"layers.{layer}"):
            weights = {
                name: sy.parameter(f"layers.{layer}.{name}.weight", shape)
                for name, shape in {"q": (16, 2, 2, 4), "k": (16, 2, 4), "v": (16, 2, 4)}.items()
            }
            with sy.scope("attn"):
                q = sy.einsum("c,chgd->hgd", x, weights["q"])
                k = sy.history(sy.einsum("c,chd->hd", x, weights["k"]), window=8 if layer else None)
                v = sy.history(sy.einsum("c,chd->hd", x, weights["v"]), window=8 if layer else None)
                scores = sy.einsum("hgd,phd->hgp", q, k) * 0.5
                mixed = sy.einsum("hgp,phd->hgd", sy.softmax(scores), v)
            x = x + mixed.reshape(16)
    return {"logits": x @ sy.parameter("head", (16, 32))}


def state_space(x):
    """A short causal convolution in front of a gated recurrence."""
    with sy.scope("conv"):
        taps = [sy.delay(x, steps) for steps in range(3)]
        mixed = sy.sum(sy.stack(taps) * sy.parameter("taps", (3, 4)), axis=0)
    with sy.scope("ssm"):
        state = sy.feedback(sy.zeros((4,)))
        decay = sy.sigmoid(mixed).named("decay")
        new = state.close((decay * state + mixed).named("new"))
    return {"y": new * x, "state": new}


def two_clocks(token, sound):
    """An encoder without causality, read by a causal decoder."""
    with sy.scope("encoder"):
        heard = sy.whole(sound)
        encoded = sy.tanh(sy.mean(heard, axis=0) + sound)
    with sy.scope("decoder"):
        x = sy.take(sy.parameter("embed", (10, 4)), token)
        keys = sy.whole(encoded)
        mixed = sy.softmax(sy.einsum("d,pd->p", x, keys)) @ keys
    return sy.sum(sy.history(x + mixed), axis=0)


def make_loop() -> Graph:
    """A program that runs a recurrence over a chunk of three positions."""
    row = {"type": TensorType((2, 1), "f32")}
    carried = make_node(OPS["input"], (), row, name="carried")
    x = make_node(OPS["input"], (), row, name="x")
    half = make_node(OPS["constant"], (), {"value": np.array(0.5, np.float32)}, name="constant")
    scaled = make_node(OPS["multiply"], (carried, half), {}, name="ssm.scaled", scope="ssm")
    new = make_node(OPS["add"], (scaled, x), {}, name="ssm.add", scope="ssm")
    body = Graph("step", (carried, x), (), {"carried": new, "y": new})
    start = make_node(OPS["input"], (), row, name="start")
    chunk = make_node(OPS["input"], (), {"type": TensorType((2, 3), "f32")}, name="chunk")
    params = {"body": body, "carries": 1, "scanned": 1, "length": 3}
    other = {**params, "body": Graph("step", (carried, x), (), {"carried": scaled, "y": new})}
    loop = make_node(OPS["loop"], (start, chunk), params, name="ssm.loop", scope="ssm")
    parts = [make_node(OPS["part"], (loop,), {"index": i}, name=f"part.{i}") for i in range(2)]
    again = make_node(OPS["loop"], (parts[0], parts[1]), params, name="ssm.again", scope="ssm")
    last = make_node(OPS["loop"], (parts[0], parts[1]), other, name="ssm.last", scope="ssm")
    ends = [make_node(OPS["part"], (node,), {"index": 1}, name=f"end.{node.name}") for node in (again, last)]
    return Graph("chunk", (start, chunk), (), {"state.ssm": parts[0], "y": ends[0], "z": ends[1]})


GRAPHS = {
    "attention": lambda: sy.trace(attention),
    "state_space": lambda: sy.trace(state_space, x="f32[4]"),
    "two_clocks": lambda: sy.trace(two_clocks, token="i32[]@target", sound="f32[4]@source"),
    "loop": make_loop,
}


@pytest.fixture(params=GRAPHS)
def named_graph(request) -> tuple[str, Graph]:
    return request.param, GRAPHS[request.param]()


def test_the_printed_form(named_graph, golden):
    name, graph = named_graph
    golden(name, print_graph(graph, locations=False))


def test_text_parses_back(named_graph):
    _, graph = named_graph
    text = print_graph(graph)
    assert print_graph(parse_graph(text)) == text


def test_parsing_restores_every_field(named_graph):
    _, graph = named_graph
    copy = parse_graph(print_graph(graph))
    for node in copy.nodes:
        if node.name in graph.by_name and not node.name.startswith("constant"):
            original = graph.by_name[node.name]
            assert (node.type, node.clock, node.scope) == (original.type, original.clock, original.scope)
            assert node.location == original.location
            for key, value in original.params.items():
                assert isinstance(value, Graph) or node.params[key] == value


def test_json_loads_back(named_graph):
    _, graph = named_graph
    text = json.dumps(to_json(graph), allow_nan=False)
    copy = from_json(json.loads(text))
    assert print_graph(copy) == print_graph(graph)
    assert json.dumps(to_json(copy)) == text


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydot")
def test_a_drawing_is_dot_and_colours_each_access(named_graph):
    name, graph = named_graph
    drawing = to_dot(graph)
    assert len(pydot.graph_from_dot_data(drawing)) == 1
    expected = {
        "attention": ("prefix", "window"),
        "state_space": ("delay", "feedback"),
        "two_clocks": ("whole", "prefix"),
        "loop": ("now",),
    }
    found = {kind for kind, colour in ACCESS_COLOURS.items() if colour in drawing}
    assert found == {"now", *expected[name]}


def test_a_drawing_leaves_out_weights_unless_asked():
    graph = sy.trace(attention)
    assert "embed" not in to_dot(graph)
    assert "embed" in to_dot(graph, parameters=True)


def test_locations_are_comments():
    def identity(x):
        return x * 2.0

    graph = sy.trace(identity, x="f32[]")
    (line,) = [line for line in str(graph).splitlines() if line.startswith("multiply")]
    assert "test_text.py:" in line.partition("#")[2]
    assert "#" not in print_graph(graph, locations=False)
    moved = replace(graph.outputs["output"], location=Location("other file.py", 7))
    other = Graph(graph.name, graph.inputs, (), {"output": moved})
    assert same(graph, other)
    assert parse_graph(str(other)).outputs["output"].location == Location("other file.py", 7)


def _constant_graph(value: np.ndarray, name: str = "constant", scope: str = "") -> Graph:
    constant = make_node(OPS["constant"], (), {"value": value}, name=name, scope=scope)
    shape = {"shape": value.shape}
    copy = make_node(OPS["reshape"], (constant,), shape, name="copy" if name != "copy" else "c")
    return Graph("g", (), (), {"y": copy})


@given(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=3), st.binary(max_size=256))
def test_constants_survive_bit_by_bit(dtype, shape, data):
    size = int(np.prod(shape, dtype=int))
    raw = np.frombuffer((data * size * 8 + bytes(size * 8))[: size * DTYPES[dtype].itemsize], np.uint8)
    value = (raw % 2 if dtype == "bool" else raw).view(DTYPES[dtype]).reshape(shape)
    for copy in (
        parse_graph(str(_constant_graph(value))),
        from_json(json.loads(json.dumps(to_json(_constant_graph(value))))),
    ):
        (constant,) = copy.outputs["y"].sources
        assert constant.type == TensorType(value.shape, dtype)
        assert constant.params["value"].tobytes() == value.tobytes()


@given(arrays.arrays(np.float32, st.integers(0, 3)))
def test_small_arrays_are_listed_as_numbers(value):
    text = str(_constant_graph(value, name="table"))
    assert print_graph(parse_graph(text)) == text


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (np.array(0.1, np.float32), "0.1"),
        (np.array(3, np.int32), "3"),
        (np.array(-3, np.int64), "-3:i64"),
        (np.array(True), "true"),
        (np.array(1e-30, np.float32), "1e-30"),
        (np.array(np.nan, np.float32), "nan"),
        (np.array(-np.inf, np.float64), "-inf:f64"),
        (np.array(-0.0, np.float32), "-0.0"),
        (np.array(1.5, DTYPES["bf16"]), "1.5:bf16"),
    ],
)
def test_scalars_are_written_where_they_are_used(value, literal):
    text = str(_constant_graph(value))
    assert f"reshape({literal}, shape=[])" in text
    assert print_graph(parse_graph(text)) == text


def test_a_constant_with_a_name_keeps_it():
    graph = _constant_graph(np.array(0.5, np.float32), name="attn.scale", scope="attn")
    assert ".scale: f32[] = constant(value=f32[]{0.5})" in str(graph)
    assert same(parse_graph(str(graph)), graph)


def test_literals_do_not_take_the_name_of_another_constant():
    big = make_node(OPS["constant"], (), {"value": np.zeros(3, np.float32)}, name="constant")
    one = make_node(OPS["constant"], (), {"value": np.array(1.0, np.float32)}, name="constant.1")
    total = make_node(OPS["add"], (big, one), {}, name="total")
    copy = parse_graph(str(Graph("g", (), (), {"y": total})))
    assert len({node.name for node in copy.nodes}) == 3


@given(st.text(min_size=1), st.text(), st.text(), st.text())
def test_any_name_can_be_written(name, scope, graph_name, output):
    x = make_node(OPS["input"], (), {"type": TensorType((), "f32")}, name="x")
    full = f"{scope}.{name}" if scope else name
    node = make_node(OPS["exp"], (x,), {}, name=full + "_", scope=scope)
    graph = Graph(graph_name, (x,), (), {output: node})
    text = str(graph)
    copy = parse_graph(text)
    assert str(copy) == text
    assert copy.name == graph_name
    assert list(copy.outputs) == [output]
    assert copy.outputs[output].name == full + "_"
    assert copy.outputs[output].scope == scope


@pytest.mark.parametrize(
    "name", ["f32", "true", "inf", "inf-x", "nan/2", "past8", "past@x", "nan@b", "graph", "0.w", "a b"]
)
def test_names_that_look_like_something_else(name):
    x = make_node(OPS["input"], (), {"type": TensorType((), "f32"), "clock": "main"}, name=name)
    history = make_node(OPS["history"], (x,), {"window": 3, "clock": "main"}, name="scope")
    graph = Graph("g", (x,), (), {"y": history})
    assert same(parse_graph(str(graph)), graph)


def test_a_graph_without_names_can_be_printed():
    x = make_node(OPS["input"], (), {"type": TensorType((), "f32")}, name="x")
    first = make_node(OPS["exp"], (x,), {})
    graph = Graph("g", (x,), (), {"y": make_node(OPS["exp"], (first,), {})})
    assert "exp.1: f32[] = exp(exp)" in str(graph)


def test_an_unread_feedback_is_part_of_the_graph():
    def forgetful(x):
        sy.feedback(0.0).close(x)
        return x * 2.0

    graph = sy.trace(forgetful, x="f32[]")
    assert same(parse_graph(str(graph)), graph)


GOOD = """graph g

input x: f32[4] @main

scope a
  .history: f32[past,4] = history(x[0:t])
  .sum: f32[4] = sum(.history, axes=[0])
h: f32[4] = feedback(a.zeros)
output y = a.sum
"""


@pytest.mark.parametrize(
    ("line", "replacement", "message"),
    [
        (1, "input x: f32[4]", "line 1: expected 'graph NAME' first"),
        (3, "input x: f32[4", "line 3: 'f32' is not a type"),
        (3, "input x: f99[4]", "line 3: 'f99' is not a type"),
        (6, "  .history: f32[past,4] = histery(x[0:t])", "line 6: no op is called 'histery'"),
        (6, "  .history: f32[past,5] = history(x[0:t])", r"line 6: .* is f32\[past,4\], not f32\[past,5\]"),
        (6, "  .history: f32[past,4] = history(x)", r"line 6: .* reads x\[0:t\], not \[t\]"),
        (6, "  .history: f32[past,4] = history(z[0:t])", "line 6: nothing is named 'z'"),
        (6, "  .history: f32[past,4] = history(x[0:t], size=3)", "line 6: .* no parameter 'size'"),
        (6, "  .history: f32[past,4] = history(x[0:t]) then", "line 6: expected the end of the line"),
        (7, "  .sum: f32[4] = sum(.history)", "line 7: sum needs a parameter 'axes'"),
        (7, "  .sum: f32[4] = sum(.history, axes=0)", "line 7: sum cannot have these"),
        (7, "  .sum: f32[4] = sum(.history, axes=[9])", r"line 7: sum: \(9,\) are not axes"),
        (7, "  .history: f32[4] = sum(.history, axes=[0])", "line 7: there are two nodes 'a.history'"),
        (8, "h: f32[4] = add(x, 1.0, 2.0)", "line 8: add takes 2 operands, not 3"),
        (8, "feedback a.sum <- x", "line 8: a feedback reads the position before"),
        (8, "h: f32[2] = constant(value=f32[2]{1.0})", "line 8: 1.0 cannot be elements"),
        (8, 'h: f32[2] = constant(value=f32[2]{"AAA"})', "line 8: the elements of"),
        (8, "h: f32[4] = exp(x, body=graph other)", "line 8: there is no graph 'other'"),
        (9, "output y = b", "line 9: nothing is named 'b'"),
    ],
)
def test_errors_name_the_line(line, replacement, message):
    lines = GOOD.splitlines()
    del lines[7]
    parse_graph("\n".join(lines))
    lines.insert(7, "")
    lines[line - 1] = replacement
    with pytest.raises(GraphError, match=message):
        parse_graph("\n".join(lines))


def test_a_graph_that_nothing_uses_is_an_error():
    with pytest.raises(GraphError, match="line 12: nothing uses the graph 'body'"):
        parse_graph(GOOD.replace("h: f32[4] = feedback(a.zeros)", "") + "\n\ngraph body\n")


def test_an_empty_text_holds_no_graph():
    with pytest.raises(GraphError, match="holds no graph"):
        parse_graph("# nothing\n")


def test_json_that_is_changed_is_refused():
    data = to_json(sy.trace(attention))
    broken = json.loads(json.dumps(data).replace("f32[past,2,4]", "f32[past,2,5]"))
    with pytest.raises(GraphError, match=r"layers\.0\.attn\.history"):
        from_json(broken)
    with pytest.raises(GraphError, match="not complete"):
        from_json({"name": "g"})
    data["nodes"][-1]["op"] = "convolution"
    with pytest.raises(GraphError, match="no op is called 'convolution'"):
        from_json(data)


def test_a_thousand_layers_print_and_parse():
    def deep(x):
        for layer in range(1000):
            with sy.scope(f"layers.{layer}"):
                x = x + sy.sum(sy.history(x * 0.5, window=4), axis=0)
        return x

    graph = sy.trace(deep, x="f32[4]")
    text = print_graph(graph)
    assert print_graph(parse_graph(text)) == text
    assert print_graph(from_json(to_json(graph))) == text
    assert parse_type("f32[4]") == parse_graph(text).outputs["output"].type
