"""Compiled models in a directory: written once, whole; read again to run without deriving anything.

DIR/manifest.json           versions, options, states, programs, and where the weights are
DIR/config.json, tokenizer* as in the checkpoint; with --copy-weights also *.safetensors
DIR/graph/                  the traced graph and the graph after each pass, as text and JSON
DIR/programs/NAME.txt       the program as a graph to read; NAME.json the same to load
DIR/programs/NAME.mlir      StableHLO text; NAME.stablehlo the portable artifact of the same
DIR/programs/NAME.py        the self-contained NumPy module
DIR/tpu/                    with a target: what its compiler made of the programs (commands/tpu_files.py)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..backends import backend_named
from ..backends.native import Kernels
from ..backends.native.layers import describe_layers
from ..backends.numpy_source import emit_numpy
from ..backends.stablehlo import emit_stablehlo
from ..compiler.chunks import Chunk
from ..compiler.pipeline import run_passes
from ..compiler.program import STATE_PREFIX, Program, State
from ..ir.dumps.json_form import from_json, to_json
from ..ir.errors import SystolicError
from ..ir.graph import Graph
from ..ir.time import parse_access
from ..ir.types import TensorType, parse_type
from ..models.load import load
from ..models.model import Model
from .decode_loop import FEWEST_STOPS
from .executable import Executable
from .files import MANIFEST, new_directory
from .options import Options
from .program_source import DerivedPrograms
from .programs import Programs
from .sampling.filters import Temperature, TopK, TopP
from .sampling.programs import loop_program
from .sampling.structure import Row, Structure, structure_of

FORMAT = 5
_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_VERSIONS = ("systolic", "jax", "jaxlib", "numpy")


# ---- writing ----


def write_compiled(
    model: Model,
    options: Options,
    out: Path,
    *,
    copy_weights: bool = False,
    more: Mapping[str, str] | None = None,
) -> None:
    """Compiles a model into the new directory ``out``; nothing of it is left behind on an error.

    ``more``: texts to write beside, by their paths inside of ``out``.
    """
    stages = run_passes(model.for_texts_up_to(options.capacity).graph, options.passes)
    source = DerivedPrograms(stages[-1].graph, options)
    programs = _programs(source, options)
    with new_directory(out) as folder:
        for place in ("graph", "programs"):
            (folder / place).mkdir()
        for number, stage in enumerate(stages):
            _write_graph(folder / "graph" / f"{number:02}.{stage.name}", stage.graph)
        for *_, program in programs:
            _write_program(folder / "programs", program)
        for path, text in (more or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        _copy_checkpoint(model, folder, copy_weights)
        manifest = {
            "format": FORMAT,
            "versions": {name: version(name) for name in _VERSIONS},
            "model": model.name,
            "weights": None if copy_weights else str(_directory(model).resolve()),
            "config": dict(model.config.values),
            "dtype": model.dtype,
            "options": _options_to_json(options),
            "states": [_state_to_json(state) for state in source.states],
            "programs": [_program_to_json(kind, size, program) for kind, size, program in programs],
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _programs(source: DerivedPrograms, options: Options) -> list[tuple[str, int, Program]]:
    """What is written, by kind and length of the source (0: there is none): chunks of each length, texts
    to score of the largest. Every other length of a source is enough: a text never needs four times it."""
    programs: list[tuple[str, int, Program]] = []
    lengths = source.source_lengths[::-2][::-1] or (0,)
    for length in lengths:
        chunks = [("chunk", source.chunk(size, length or None)) for size in options.chunk_sizes]
        sources = [("source", source.source(length)), ("encode", source.encode(length))] if length else []
        loops = [("generate", loop) for loop in _loops(chunks[0][1])]
        programs += [(kind, length, _named(program, length)) for kind, program in [*chunks, *sources, *loops]]
    programs.append(("score", lengths[-1], source.score(source.score_lengths[-1])))
    return programs


def _loops(decode: Program) -> list[Program]:
    """Decode loops to be used elsewhere: greedy, and with temperature, top-k and top-p. What runs here is
    made of the decode step and the chain that is asked for."""
    tokens = [n.name for n in decode.graph.inputs if str(n.type) == f"i32[{decode.rows},1]"]
    logits = "logits" if "logits" in decode.results else decode.results[0]
    if len(tokens) != 1 or decode.graph.outputs[logits].tensor.rank != 3:
        return []  # what is yielded is not one number for each token
    chains = (Structure(), structure_of([Row((Temperature(), TopK(), TopP()), draws=True)]))
    return [loop_program(decode, chain, FEWEST_STOPS, (tokens[0], logits)) for chain in chains]


def _named(program: Program, source: int) -> Program:
    """The program under a name that no other length of the source has."""
    return replace(program, name=f"{program.name}.source{source}") if source else program


def _write_graph(stem: Path, graph: Graph) -> None:
    stem.with_name(f"{stem.name}.txt").write_text(f"{graph}\n", encoding="utf-8")
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(to_json(graph)), encoding="utf-8")


def _write_program(folder: Path, program: Program) -> None:
    from ..backends.xla import portable_artifact  # loads jax, which reading a directory can do without

    stem = folder / _file_name(program.name)
    _write_graph(stem, program.graph)
    text = emit_stablehlo(program)
    stem.with_name(f"{stem.name}.mlir").write_text(text, encoding="utf-8")
    stem.with_name(f"{stem.name}.stablehlo").write_bytes(portable_artifact(text))
    stem.with_name(f"{stem.name}.py").write_text(emit_numpy(program), encoding="utf-8")


def _directory(model: Model) -> Path:
    return model.path if model.path.is_dir() else model.path.parent


def _copy_checkpoint(model: Model, folder: Path, copy_weights: bool) -> None:
    if model.weights is None and copy_weights:
        raise SystolicError(f"{model.path} has no weights to copy")
    patterns = ["*.safetensors", "*.safetensors.index.json"] if copy_weights else []
    sources = [_directory(model) / name for name in _TEXT_FILES]
    for file in [*sources, *(found for pattern in patterns for found in _directory(model).glob(pattern))]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    if model.path.is_file():
        shutil.copyfile(model.path, folder / "config.json")


def _options_to_json(options: Options) -> dict[str, Any]:
    """What the programs depend on; backend, cache and rolling are the choice of whoever runs them."""
    names = ("batch", "capacity", "chunk", "state", "state_dtype", "source_capacity")
    values = {name: getattr(options, name) for name in names}
    values["chunks"] = [[chunk.size, chunk.seconds] for chunk in options.chunks]
    return {name: value for name, value in values.items() if value is not None}


def _options_from_json(backend: str, values: Mapping[str, Any], roll: str) -> Options:
    chunks = tuple(Chunk(size, seconds) for size, seconds in values["chunks"])
    return Options(backend, **{**values, "chunks": chunks}, roll=roll)


def _state_to_json(state: State) -> dict[str, Any]:
    shown = {"type": str(state.type), "value": str(state.value), "access": str(state.access)}
    return {**asdict(state), **shown}


def _program_to_json(kind: str, source: int, program: Program) -> dict[str, Any]:
    graph = program.graph
    return {
        "name": program.name,
        "kind": kind,
        "source": source,
        "rows": program.rows,
        "chunk": program.chunk,
        "capacity": program.capacity,
        "parameters": [{"name": n.name, "type": str(n.type)} for n in graph.parameters],
        "inputs": [{"name": n.name, "type": str(n.type)} for n in graph.inputs],
        "outputs": [{"name": name, "type": str(n.type)} for name, n in graph.outputs.items()],
        "donated": list(program.donated),
        "layers": describe_layers(graph, Kernels(""), "auto"),  # where kernels of ours run
    }


def _file_name(program: str) -> str:
    """A name without dots, so that the NumPy module can be imported."""
    return program.replace(".", "_")


# ---- reading ----


def open_compiled(path: Path, backend: str, chosen: Mapping[str, Any], roll: str = "auto") -> Executable:
    """The executable of a compiled directory.

    ``chosen`` holds options that the user gave; what differs from the manifest is a ``SystolicError``.
    ``roll`` as in ``Options``: it changes how programs are compiled here, and not the programs.
    """
    manifest = _read_manifest(path)
    for name, value in chosen.items():
        fixed = manifest["dtype"] if name == "dtype" else manifest["options"][name]
        if value is not None and value != fixed:
            raise SystolicError(f"{path} was compiled for {name} {fixed} and cannot run with {value}")
    options = _options_from_json(backend, manifest["options"], roll)
    model = _model(path, manifest).for_texts_up_to(options.capacity)
    source = SavedPrograms(path, manifest, {node.name: node.tensor for node in model.graph.parameters})
    place = backend_named(backend, roll=roll)
    return Executable(model, options, place, Programs(source, place))


def compiled_model(path: Path) -> Model:
    """The model that a compiled directory was made from."""
    return _model(path, _read_manifest(path))


def _model(path: Path, manifest: Mapping[str, Any]) -> Model:
    reference = manifest["weights"]
    if reference is not None and not Path(reference).is_dir():
        raise SystolicError(f"{path} refers to weights at {reference}, which is not a directory any more")
    model = replace(load(reference or path, manifest["dtype"]), name=manifest["model"])
    if dict(model.config.values) != manifest["config"]:
        raise SystolicError(f"{model.path}/config.json is not the one that {path} was compiled from")
    return model


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystolicError(f"{path / MANIFEST} is no manifest of a compiled model: {error!r}") from None
    if found != FORMAT:
        raise SystolicError(f"{path / MANIFEST} has format {found}; this version reads format {FORMAT}")
    return manifest


class SavedPrograms:
    """The programs of a compiled directory, each read when it is asked for. ``weights`` are what the model
    has for their parameters; programs of a release that kept other numbers are a ``SystolicError``."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], weights: Mapping[str, TensorType]) -> None:
        self._path = path
        self._weights = weights
        self._entries = {(e["kind"], e["chunk"], e["source"]): e for e in manifest["programs"]}
        self._states = tuple(_state_from_json(entry) for entry in manifest["states"])
        self.score_lengths = tuple(chunk for kind, chunk, _ in self._entries if kind == "score")
        self.source_lengths = tuple(length for kind, _, length in self._entries if kind == "source")

    @property
    def states(self) -> tuple[State, ...]:
        return self._states

    @property
    def _longest(self) -> int:
        return max(self.source_lengths, default=0)

    def chunk(self, size: int, source: int | None = None) -> Program:
        length = self._longest if source is None else source
        return self._read(self._entries["chunk", size, length], self._states)

    def verify(self, size: int, source: int | None = None) -> Program:
        raise SystolicError(
            f"{self._path} holds no program with logits at all positions; checking guessed tokens needs "
            "the model itself"
        )

    def score(self, length: int, source: int | None = None) -> Program:
        return self._read(self._entries["score", length, self._longest], ())

    def source(self, length: int) -> Program:
        constants = tuple(state for state in self._states if state.kind == "constant")
        return self._read(self._entries["source", length, length], constants)

    def encode(self, length: int) -> Program:
        return self._read(self._entries["encode", length, length], ())

    def with_rows(self, rows: int) -> SavedPrograms:
        raise SystolicError(f"{self._path} was compiled for fewer than {rows} rows; a search needs as many")

    @property
    def behind_encoder(self) -> SavedPrograms:
        raise SystolicError(f"{self._path} holds no programs for encoder states; they need the model itself")

    def _read(self, entry: Mapping[str, Any], states: tuple[State, ...]) -> Program:
        file = self._path / "programs" / f"{_file_name(entry['name'])}.json"
        try:
            graph = from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SystolicError(f"{file} is not a readable program: {error}") from None
        for name, type_ in ((node.name, node.tensor) for node in graph.parameters):
            kept = self._weights.get(name, type_)
            if kept.dtype != type_.dtype:
                raise SystolicError(
                    f"{self._path} was compiled for {name} as {type_}, which is {kept} now; compile it anew"
                )
        types = {node.name: node.tensor for node in graph.inputs}
        types |= {name: node.tensor for name, node in graph.outputs.items()}
        # How much room constants have is told by the program, not by the manifest.
        sized = tuple(replace(state, type=types[STATE_PREFIX + state.name]) for state in states)
        return Program(entry["name"], graph, sized, entry["rows"], entry["chunk"], entry["capacity"])


def _state_from_json(entry: Mapping[str, Any]) -> State:
    parsed = {
        "type": parse_type(entry["type"]),
        "value": parse_type(entry["value"]),
        "access": parse_access(entry["access"]),
    }
    return State(**{**entry, **parsed})
