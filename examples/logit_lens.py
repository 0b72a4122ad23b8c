"""The logit lens: what a model would say if it stopped after each of its layers.

    python examples/logit_lens.py "ROMEO:"

The streams between the layers are tapped while a text goes on, and the model's last norm and its head are
applied to each of them. Works for models like Llama, whose last norm is ``model.norm``.
"""

from __future__ import annotations

import sys

import numpy as np

import systolic as sy

NEW_TOKENS = 12


def lens(model: sy.Model, x: np.ndarray) -> np.ndarray:
    """The probabilities f32[V] that the model's head finds in ``x`` f32[D], a value between two layers."""
    weights, eps = model.weights, model.config.number("rms_norm_eps")
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    normed = x / np.sqrt(np.mean(x * x) + eps) * weights["model.norm.weight"]
    logits = weights[head] @ normed
    chances = np.exp(logits - logits.max())
    return chances / chances.sum()


def show(executable: sy.Executable, prompt: str) -> None:
    """A row for each new token, a column for each layer: its best token, and how sure it is."""
    taps = executable.tap("embed.take", "layers.*.mlp.x")
    depth = len(taps.names) - 1
    print(f"{'chosen':<14}{'embedding':<14}" + "".join(f"{f'layer {i}':<14}" for i in range(depth)))
    for reading in taps.trace(prompt, max_new_tokens=NEW_TOKENS, temperature=0.0):
        if reading.step is None:
            continue
        cells = [repr(executable.tokenizer.decode([reading.step.token]))]
        for name in taps.names:
            chances = lens(executable.model, reading.values[name])
            best = int(chances.argmax())
            cells.append(f"{executable.tokenizer.decode([best])!r} {chances[best]:.0%}")
        print("".join(f"{cell:<14}" for cell in cells))


if __name__ == "__main__":
    show(sy.compile(sy.load(), backend="numpy"), sys.argv[1] if len(sys.argv) > 1 else "ROMEO:")
