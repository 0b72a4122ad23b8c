"""Adapters beside a model: each text chooses one by its name, or none, and no weights are changed.

LoRA factors become branches (``compiler.branches``), learned prompts become token ids behind the vocabulary.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..compiler.branches import Branch, LowRank, Site, Whole, add_branches
from ..compiler.learned_tokens import add_learned_tokens
from ..ir.errors import SystolicError
from ..ir.types import DTYPES
from .adapter_sites import Sites, Target
from .families import FAMILIES
from .load import COMPACT
from .model import AdapterChoice, Model
from .peft import F32, Adapter, Factors, read_adapter
from .weights import Naming, StoredTensor

PROMPTS = "adapters.prompts"  # the parameter with all learned vectors

_Numbered = dict[int, tuple[Target, Factors]]


def with_adapters(model: Model, directories: Mapping[str, str | Path]) -> Model:
    """The model that computes a text with the adapter of its choice.

    Raises ``SystolicError`` that names the adapter where it does not fit the model, or cannot be kept beside
    others.
    """
    if model.dtype in COMPACT:
        raise SystolicError(
            f"{model.name} is kept as {model.dtype}, beside which no adapter can be kept; merge it when the "
            "model is loaded, or keep the weights as f32 or bf16"
        )
    adapters = {name: read_adapter(directory) for name, directory in directories.items()}
    numbered = [adapter for adapter in adapters.values() if adapter.prompt is None]
    prompts = {name: adapter.prompt for name, adapter in adapters.items() if adapter.prompt is not None}
    # Prompts come first: branches change what a table holds, and not what takes its place.
    changed = _with_prompts(model, prompts, adapters) if prompts else model
    changed = _with_branches(changed, numbered) if numbered else changed
    choices: dict[str, AdapterChoice] = {}
    first = model.vocabulary_size
    for name, adapter in adapters.items():
        if adapter.prompt is None:
            choices[name] = AdapterChoice(1 + numbered.index(adapter))
        else:
            count = adapter.prompt.shape[0]
            choices[name] = AdapterChoice(prompt=tuple(range(first, first + count)))
            first += count
    return replace(changed, adapters=choices)


class _Made(Mapping[str, np.ndarray]):
    """Weights by name, each made when it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _with_weights(model: Model, makers: Mapping[str, Callable[[], np.ndarray]]) -> Mapping | None:
    return None if model.weights is None else ChainMap(_Made(makers), model.weights)  # type: ignore[arg-type]  # only read


# ---- LoRA ----


@dataclass
class _Found:
    """What adapters change at one site: factors by adapter and expert, or whole tensors by adapter."""

    name: str
    factors: dict[tuple[int, int], tuple[Target, Factors]] = field(default_factory=dict)
    tensors: dict[int, StoredTensor] = field(default_factory=dict)


def _with_branches(model: Model, adapters: list[Adapter]) -> Model:
    found = _collect(model, adapters)
    choices = 1 + len(adapters)
    parameters = {node.name: node.tensor for node in model.graph.parameters}
    branches: dict[Site, Branch] = {}
    makers: dict[str, Callable[[], np.ndarray]] = {}
    for site, change in found.items():
        shape = parameters[site.parameter].static_shape
        if change.tensors:
            slots = _slots(change.tensors, choices)
            branch: Branch = Whole(f"{change.name}.adapters", slots)
            weights, dtype = model.weights or {}, DTYPES[parameters[site.parameter].dtype]
            makers[branch.name] = partial(_stack_of_tensors, weights, site, change, dtype)
        else:
            rank = max(factors.rank for _, factors in change.factors.values())
            branch = LowRank(f"{change.name}.adapters", rank)
            for side in (0, 1):
                make = partial(_stack_of_factors, shape, change, choices, rank, site.reader, side)
                makers[f"{branch.name}.{('left', 'right')[side]}"] = make
        branches[site] = branch
    graph = add_branches(model.graph, branches, choices)
    return replace(model, graph=graph, weights=_with_weights(model, makers))


def _collect(model: Model, adapters: list[Adapter]) -> dict[Site, _Found]:
    family = FAMILIES.get(str(model.config.values.get("model_type")))
    sites = Sites(model.graph, family.naming if family else Naming())
    found: dict[Site, _Found] = {}

    def at(target: Target) -> _Found:
        tied = target.is_shared and target.site.reader == "contraction"
        name = target.alias if tied else target.site.parameter
        return found.setdefault(target.site, _Found(name.removesuffix(".weight")))

    for number, adapter in enumerate(adapters, start=1):
        _require_same_base(model, sites, adapter)
        for module, factors in adapter.factors.items():
            target = sites.of_factors(adapter, module, factors)
            if factors.magnitude is not None:
                raise SystolicError(
                    f"{adapter.path}: use_dora cannot be kept beside the model; merge it when that is loaded"
                )
            at(target).factors[number, target.expert or 0] = target, factors
        for name, tensor in adapter.tensors.items():
            target = sites.of_tensor(adapter, name, tensor)
            if target.expert is not None:
                raise SystolicError(
                    f"{adapter.path}: whole weights of the expert {name} cannot be kept beside the model; "
                    "merge the adapter when the model is loaded"
                )
            at(target).tensors[number] = tensor
    for change in found.values():
        if change.factors and change.tensors:
            raise SystolicError(
                f"one adapter has factors for {change.name} and another whole weights, which cannot be kept "
                "side by side; merge one of them when the model is loaded"
            )
    return found


def _require_same_base(model: Model, sites: Sites, adapter: Adapter) -> None:
    for name, tensor in adapter.bases.items():
        target = sites.of_tensor(adapter, name, tensor)
        own = None if model.weights is None else model.weights[target.site.parameter]
        if own is not None and not np.array_equal(own, tensor.array(own.dtype)):
            raise SystolicError(f"{tensor.path}: was trained beside other {name} than that of this model")


def _slots(tensors: Mapping[int, StoredTensor], choices: int) -> tuple[int, ...]:
    """For each choice the place in the stack: that of the model's own weights is 0."""
    order = sorted(tensors)
    return tuple(1 + order.index(number) if number in tensors else 0 for number in range(choices))


def _stack_of_tensors(
    weights: Mapping[str, np.ndarray], site: Site, change: _Found, dtype: np.dtype
) -> np.ndarray:
    own = weights[site.parameter]
    stack = np.stack([own, *(change.tensors[number].array(dtype) for number in sorted(change.tensors))])
    return stack.reshape(-1, *own.shape[1:]) if site.reader == "take" else stack


def _stack_of_factors(
    shape: tuple[int, ...], change: _Found, choices: int, rank: int, reader: str, side: int
) -> np.ndarray:
    """The left or right factors of all choices, filled up with zeros to the same rank."""
    *experts, rows, columns = shape
    each = (rows, rank) if side == 0 else (rank, columns)
    stack = np.zeros((choices, *(experts or [1]), *each), F32)
    for (number, expert), (target, factors) in change.factors.items():
        part = factors.sides(transposed=target.transposed)[side]
        stack[number, expert][: part.shape[0], : part.shape[1]] = part
    if experts or (reader == "take" and side == 0):
        return stack.reshape(-1, *each) if experts else stack.reshape(-1, rank)
    return stack[:, 0]


# ---- learned prompts ----


def _with_prompts(
    model: Model, prompts: Mapping[str, StoredTensor], adapters: Mapping[str, Adapter]
) -> Model:
    family = FAMILIES.get(str(model.config.values.get("model_type")))
    is_scaled = bool(getattr(family.model, "scales_in_embedding", False)) if family else False
    count = sum(prompt.shape[0] for prompt in prompts.values())
    graph, width = add_learned_tokens(
        model.graph, PROMPTS, first=model.vocabulary_size, count=count, behind_scale=is_scaled
    )
    for name, prompt in prompts.items():
        if prompt.shape[1] != width:
            raise SystolicError(
                f"{adapters[name].path}: has vectors of {prompt.shape[1]} numbers, and the embeddings of "
                f"{model.name} have {width}"
            )

    def stack() -> np.ndarray:
        return np.concatenate([prompt.array(F32) for prompt in prompts.values()])

    return replace(model, graph=graph, weights=_with_weights(model, {PROMPTS: stack}))
