"""Trains the embedded model through the graph: the parallel scoring program, differentiated by JAX.

    python examples/train_shakespeare.py tinyshakespeare.txt --out DIRECTORY     writes a checkpoint
    python examples/train_shakespeare.py tinyshakespeare.txt --evaluate shakespeare  its held-out loss

The first 90 % of the characters train the tokenizer and the model; the loss on the last 10 % is stated
in nats per character, so that it can be compared across tokenizers. Needs the extra ``train``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

import systolic as sy
from systolic.compiler.derive import derive_score
from systolic.compiler.pipeline import run_passes
from systolic.models.families import build
from systolic.models.spec import Config

BEGIN = "<|begin|>"  # stands before every text: a crop in training, a window in evaluation, a prompt
Parameters = dict[str, jax.Array]
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Sizes of the model and how it is trained. Lengths are in tokens."""

    vocabulary: int = 768
    hidden: int = 192
    intermediate: int = 512
    layers: int = 5
    heads: int = 4
    key_heads: int = 2
    context: int = 512
    short_context: int = 128  # of most of the training: cheaper, and most of what there is to learn
    block: int = 4096  # tokens in each step
    rate: float = 6e-3  # at its peak
    warmup: float = 0.03  # fractions of the training
    weight_decay: float = 0.1
    clip: float = 1.0
    bpe_dropout: float = 0.1  # of merges, in training only
    settled: float = 0.2  # the last part of the training: no dropout, the full context
    speech_starts: float = 0.25  # of the crops begin where someone begins to speak
    report: int = 500  # steps between reports of the held-out loss, and checkpoints
    seed: int = 0


# ---- text and tokens ----


def split_text(path: Path) -> tuple[str, str]:
    """The first 90 % of the characters, and the rest, which is held out."""
    text = path.read_text(encoding="utf-8")
    boundary = len(text) * 9 // 10
    return text[:boundary], text[boundary:]


def train_tokenizer(text: str, vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer that puts ``BEGIN`` before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin_id(tokenizer))]
    )
    return tokenizer


def begin_id(tokenizer: Tokenizer) -> int:
    return tokenizer.get_vocab()[BEGIN]


class Segmentations:
    """A text as token ids, its words in other pieces each time (BPE dropout), which keeps it fresh.

    The library's own dropout cannot be seeded: here variants of every distinct word are drawn once.
    """

    def __init__(
        self, tokenizer: Tokenizer, text: str, dropout: float, generator: np.random.Generator
    ) -> None:
        model = json.loads(tokenizer.to_str())["model"]
        self._ids: dict[str, int] = model["vocab"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self._generator = generator
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        distinct, self._words = np.unique(np.array(words, object), return_inverse=True)
        self._plain = self._table([[self._segment(word, 0.0)] for word in distinct])
        self._varied = self._table([[self._segment(word, dropout) for _ in range(8)] for word in distinct])

    def plain(self) -> np.ndarray:
        """The ids i32[n] that the tokenizer gives for the text."""
        return self._lookup(*self._plain)

    def varied(self) -> np.ndarray:
        """Ids i32[n] with some merges left out."""
        return self._lookup(*self._varied)

    def _segment(self, word: str, dropout: float) -> list[int]:
        parts = list(word)
        while True:
            ranks = [self._ranks.get(pair) for pair in pairwise(parts)]
            kept = [
                (rank, i)
                for i, rank in enumerate(ranks)
                if rank is not None and (not dropout or self._generator.random() >= dropout)
            ]
            if not kept:
                return [self._ids[part] for part in parts]
            _, i = min(kept)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    @staticmethod
    def _table(variants: list[list[list[int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = np.array([[len(ids) for ids in word] for word in variants])
        flat = np.array([token for word in variants for ids in word for token in ids], np.int32)
        starts = np.cumsum(lengths.ravel()).reshape(lengths.shape) - lengths
        return flat, starts, lengths

    def _lookup(self, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        variant = self._generator.integers(lengths.shape[1], size=len(self._words))
        counts = lengths[self._words, variant]
        ends = np.cumsum(counts)
        # Position within the flat table: each word's own start, counted on.
        return flat[np.arange(ends[-1]) + np.repeat(starts[self._words, variant] - ends + counts, counts)]


def batches(
    recipe: Recipe, tokenizer: Tokenizer, text: str, settled: Callable[[], bool]
) -> Iterator[np.ndarray]:
    """Blocks i32[rows, context + 1] of random crops, each with ``BEGIN`` before it, without end."""
    generator = np.random.default_rng(recipe.seed)
    segmentations = Segmentations(tokenizer, text, recipe.bpe_dropout, generator)
    begin, newline = begin_id(tokenizer), tokenizer.token_to_id("Ċ")
    while True:
        end = settled()
        ids = segmentations.plain() if end else segmentations.varied()
        context = recipe.context if end else recipe.short_context
        rows, last = recipe.block // context, len(ids) - context
        is_newline = ids[:last] == newline
        speeches = np.flatnonzero(is_newline[:-2] & is_newline[1:-1]) + 2
        for _ in range(len(ids) // recipe.block):
            if settled() != end:
                break
            anywhere = generator.integers(last + 1, size=rows)
            at_speech = generator.random(rows) < recipe.speech_starts
            starts = np.where(at_speech, generator.choice(speeches, rows), anywhere)
            crops = ids[starts[:, None] + np.arange(context)]
            yield np.concatenate([np.full((rows, 1), begin, np.int32), crops], axis=1)


# ---- the model ----


def configuration(recipe: Recipe, begin: int) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": recipe.vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.key_heads,
        "max_position_embeddings": recipe.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": begin,
        "eos_token_id": None,
        "torch_dtype": "float16",
    }


def initial(graph: sy.Graph, recipe: Recipe) -> Parameters:
    """Norms of one; matrices that keep the size of what they multiply, smaller where layers add up."""
    generator, parameters = np.random.default_rng(recipe.seed), {}
    for node in graph.parameters:
        shape = node.tensor.static_shape
        if len(shape) == 1:
            values = np.ones(shape)
        else:
            adds_up = node.name.endswith(("o_proj.weight", "down_proj.weight"))
            deviation = shape[1] ** -0.5 / ((2 * recipe.layers) ** 0.5 if adds_up else 1.0)
            values = generator.normal(size=shape) * (0.02 if "embed" in node.name else deviation)
        parameters[node.name] = jnp.asarray(values, jnp.float32)
    return parameters


Losses = Callable[[Arrays, Any], jax.Array]


def token_losses(graph: sy.Graph) -> Losses:
    """The function (parameters, blocks i32[B, T + 1]) -> -log P [B, T] of each token but the first.

    This is the whole model: the program that scores all positions at once, derived from the causal
    graph of one token, as a differentiable JAX function.
    """
    final = run_passes(graph)[-1].graph

    def losses(parameters: Arrays, blocks: Any) -> jax.Array:
        rows, length = blocks.shape[0], blocks.shape[1] - 1
        program = sy.to_jax(derive_score(final, rows=rows, length=length))
        nothing_before, full = jnp.zeros(rows, jnp.int32), jnp.full(rows, length, jnp.int32)
        inputs = {"token": blocks[:, :-1], "offset": nothing_before, "length": full}
        logits = program(parameters, inputs, {})[0]["logits"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, blocks[:, 1:])

    return losses


# ---- held-out loss ----


def windows(ids: list[int], begin: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks i32[n, context + 1] that overlap by half, and which targets bool[n, context] they count.

    Each block begins with ``BEGIN``; every token of the text is counted exactly once, and all but
    those of the first block have at least half a context before them.
    """
    stride = context // 2
    starts = range(0, max(len(ids) - stride, 1), stride)
    blocks = np.full((len(starts), context + 1), begin, np.int32)
    counted = np.zeros((len(starts), context), bool)
    for row, start in enumerate(starts):
        part = ids[start : start + context]
        blocks[row, 1 : len(part) + 1] = part
        counted[row, 0 if row == 0 else stride : len(part)] = True
    return blocks, counted


def nats_per_character(
    losses: Losses, parameters: Arrays, tokenizer: Tokenizer, text: str, context: int
) -> float:
    """-log P of ``text`` under the model, by its number of characters."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    blocks, counted = windows(ids, begin_id(tokenizer), context)
    rows, total = 8, 0.0
    for start in range(0, len(blocks), rows):
        part = np.resize(blocks[start : start + rows], (rows, context + 1))
        values = np.asarray(losses(parameters, part), np.float64)
        mask = counted[start : start + rows]
        total += values[: len(mask)][mask].sum()
    return total / len(text)


def evaluate(name: str, text_path: Path) -> float:
    """The held-out loss of a checkpoint, from its files alone."""
    model = sy.load(name)
    if model.tokenizer_path is None or model.weights is None:
        raise SystemExit(f"{name} has no weights or no tokenizer")
    losses = jax.jit(token_losses(model.graph))
    weights = {key: jnp.asarray(value) for key, value in model.weights.items()}
    tokenizer = Tokenizer.from_file(str(model.tokenizer_path))
    return nats_per_character(losses, weights, tokenizer, split_text(text_path)[1], model.context_length)


# ---- training ----


def learning_rate(recipe: Recipe, progress: float) -> float:
    """A linear rise, then half a cosine down to zero; ``progress`` goes from 0 to 1."""
    if progress < recipe.warmup:
        return recipe.rate * progress / recipe.warmup
    return recipe.rate * 0.5 * (1 + np.cos(np.pi * (progress - recipe.warmup) / (1 - recipe.warmup)))


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """For a learning rate of one, since the schedule scales the updates.

    Muon for the layers' matrices, AdamW for norms and the embedding, whose rows are vectors on their own.
    """
    muon = optax.contrib.muon(1.0, weight_decay=recipe.weight_decay, consistent_rms=0.2)
    rules = {"matrix": muon, "other": optax.adamw(1.0, weight_decay=0.0)}

    def kinds(parameters: Parameters) -> dict[str, str]:
        return {name: "matrix" if "proj" in name else "other" for name in parameters}

    return optax.chain(optax.clip_by_global_norm(recipe.clip), optax.partition(rules, kinds))


def make_update(losses: Losses, rule: optax.GradientTransformation) -> Callable[..., Any]:
    """One step: (parameters, state, blocks, rate) -> (parameters, state, mean loss per token)."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(parameters: Parameters, state: Any, blocks: jax.Array, rate: float) -> Any:
        loss, gradients = jax.value_and_grad(lambda p: losses(p, blocks).mean())(parameters)
        updates, state = rule.update(gradients, state, parameters)
        scaled = jax.tree.map(lambda step: rate * step, updates)
        return optax.apply_updates(parameters, scaled), state, loss

    return update


def train(recipe: Recipe, text_path: Path, steps: int, minutes: float | None, out: Path) -> float:
    """Trains and writes a checkpoint to ``out``; returns its held-out loss in nats per character."""
    text, held_out = split_text(text_path)
    tokenizer = train_tokenizer(text, recipe.vocabulary)
    settings = configuration(recipe, begin_id(tokenizer))
    _, graph = build(Config("config.json", settings))
    losses = token_losses(graph)
    held_out_loss = partial(nats_per_character, jax.jit(losses))
    rule, parameters = optimizer(recipe), initial(graph, recipe)
    update, state = make_update(losses, rule), rule.init(parameters)
    count = sum(array.size for array in parameters.values())
    print(f"{count} parameters, {len(text) / len(tokenizer.encode(text).ids):.2f} characters per token")

    began, progress = time.monotonic(), 0.0
    blocks = batches(recipe, tokenizer, text, lambda: progress > 1 - recipe.settled)
    bar = tqdm(total=steps, unit="step", mininterval=5)
    for step in range(steps):
        elapsed = (time.monotonic() - began) / 60
        progress = max(step / steps, elapsed / minutes if minutes else 0.0)
        if progress >= 1:
            break
        parameters, state, loss = update(parameters, state, next(blocks), learning_rate(recipe, progress))
        bar.update()
        if step % 100 == 0:
            bar.set_postfix(nats_per_token=f"{loss:.3f}")
        if step and step % recipe.report == 0:
            save(out, settings, tokenizer, parameters)
            nats = held_out_loss(parameters, tokenizer, held_out, recipe.short_context)
            tqdm.write(f"step {step}, {elapsed:.1f} minutes: held out {nats:.4f} nats per character")
    bar.close()
    save(out, settings, tokenizer, parameters)
    return evaluate(str(out), text_path)


def save(out: Path, settings: dict[str, Any], tokenizer: Tokenizer, parameters: Parameters) -> None:
    """A checkpoint directory; weights are rounded to float16."""
    out.mkdir(parents=True, exist_ok=True)
    begin = settings["bos_token_id"]
    write = {
        "config.json": settings,
        # The most likely tokens soon repeat themselves; what is drawn reads like a play.
        "generation_config.json": {
            "bos_token_id": begin,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.95,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "bos_token": BEGIN,
            "model_max_length": settings["max_position_embeddings"],
        },
    }
    for name, values in write.items():
        (out / name).write_text(json.dumps(values, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    weights = {name: np.asarray(array, np.float16) for name, array in parameters.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="tinyshakespeare.txt")
    parser.add_argument("--out", type=Path, default=Path("shakespeare"), help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--minutes", type=float, help="end sooner; the learning rate falls accordingly")
    parser.add_argument(
        "--evaluate", metavar="MODEL", help="do not train: state the held-out loss of a model"
    )
    given = parser.parse_args()
    if not given.text.is_file():
        parser.error(f"{given.text} is no file; expected the text to train on")
    if given.evaluate:
        nats = evaluate(given.evaluate, given.text)
    else:
        nats = train(Recipe(), given.text, given.steps, given.minutes, given.out)
    print(f"held out: {nats:.4f} nats per character")


if __name__ == "__main__":
    main()
