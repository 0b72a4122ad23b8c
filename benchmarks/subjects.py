"""What is measured: models of real shapes with random weights, and one real checkpoint.

All contestants of a run are given the same NumPy arrays, float32, by the names that checkpoints use.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import systolic as sy
from systolic.backends.cache import default_cache_directory

ROOT = Path(__file__).resolve().parent.parent


def llama_config(hidden: int, layers: int, capacity: int, **other: Any) -> dict[str, Any]:
    """A Llama with heads of 64, by its width and depth; ``other`` fields replace these."""
    heads = max(1, hidden // 64)
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3 // 64 * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4 if heads % 4 == 0 else heads // 3 if heads % 3 == 0 else heads,
        "vocab_size": 32000,
        "max_position_embeddings": capacity,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        **other,
    }


TINY = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}  # for tests


def mamba_config(hidden: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """A Mamba with 16 numbers for each of twice ``hidden`` channels."""
    return {
        "model_type": "mamba",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "state_size": 16,
        "conv_kernel": 4,
        "time_step_rank": hidden // 16,
        "expand": 2,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": True,
    }


def lstm_config(hidden: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """Layers of LSTM cells, all as wide as the embedding."""
    sizes = {"embedding_size": hidden, "hidden_size": hidden, "num_layers": layers}
    return {"model_type": "lstm_lm", "vocab_size": vocabulary, **sizes}


# The numbers of layers and widths are those of published models, so that products have their sizes.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama-0.1b": llama_config(768, 12, 16384),
    "llama-0.5b": llama_config(1536, 18, 16384, num_key_value_heads=8),
    "llama-1b": llama_config(  # Llama 3.2 1B, without the scaling of its rotation
        2048,
        16,
        16384,
        intermediate_size=8192,
        num_key_value_heads=8,
        vocab_size=128256,
        rope_theta=500000.0,
    ),
    "mistral-window": llama_config(  # Mistral's proportions, with a quarter of its window
        768, 4, 32768, model_type="mistral", sliding_window=1024, head_dim=64
    ),
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    },
    "mamba-130m": mamba_config(768, 24, 50280),
    "mamba2-130m": {
        "model_type": "mamba2",
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "num_heads": 24,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 1,
        "chunk_size": 256,
        "vocab_size": 50288,
        "tie_word_embeddings": True,
    },
    "gpt2-tiny": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "vocab_size": 256,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    },
    "mamba-tiny": mamba_config(64, 2, 256),
    "lstm-tiny": lstm_config(64, 2, 256),
    "llama-tiny": llama_config(64, 2, 512, **TINY),
    "mistral-tiny": llama_config(64, 2, 512, **TINY, model_type="mistral", sliding_window=16),
    "rwkv-169m": {
        "model_type": "rwkv",
        "hidden_size": 768,
        "attention_hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "context_length": 1024,
        "vocab_size": 50277,
        "rescale_every": 6,
    },
    "lstm-80m": lstm_config(1024, 2, 32000),
    "griffin-0.1b": {  # RecurrentGemma's proportions: two recurrences, then attention to a window
        "model_type": "recurrent_gemma",
        "hidden_size": 768,
        "lru_width": 768,
        "intermediate_size": 4608,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 1,
        "attention_window_size": 1024,
        "vocab_size": 32000,
    },
}
REAL = {"stories260K": "real/stories260K"}  # directories in the shared data


@dataclass(frozen=True)
class Subject:
    """A model as all contestants are given it; ``model`` has no weights where they are random."""

    name: str
    config: Mapping[str, Any]
    model: sy.Model
    weights: Mapping[str, np.ndarray]

    @property
    def window(self) -> int | None:
        """How many positions attention sees, if not all."""
        return self.config.get("sliding_window")

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(array.size for array in self.weights.values())

    @property
    def vocabulary_size(self) -> int:
        return int(self.config["vocab_size"])

    def prompts(self, rows: int, length: int) -> np.ndarray:
        """Random token ids i32[rows, length]."""
        random = np.random.default_rng(1)
        return random.integers(3, self.vocabulary_size, (rows, length)).astype(np.int32)


def load_subject(name: str) -> Subject:
    """A model of ``CONFIGS`` or ``REAL`` by its name, or a checkpoint by its directory."""
    if name in CONFIGS:
        model = model_of_config(CONFIGS[name])
        return Subject(name, CONFIGS[name], model, random_weights(model.graph))
    shared = Path(os.environ.get("SYSTOLIC_SHARED", ROOT.parent / "shared"))
    path = shared / REAL[name] if name in REAL else Path(name)
    if not path.is_dir():
        raise SystemExit(f"{path}: is no model; known: {', '.join([*CONFIGS, *REAL])}, or a directory")
    model = sy.load(path)
    assert model.weights is not None
    weights = {node.name: np.array(model.weights[node.name]) for node in model.graph.parameters}
    return Subject(path.name, json.loads((path / "config.json").read_text()), model, weights)


def checkpoint_of(subject: Subject) -> Path:
    """A directory with the subject as a checkpoint, written once into the user's cache."""
    if subject.name not in CONFIGS:
        return subject.model.path
    folder = default_cache_directory().parent / "checkpoints" / subject.name
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(subject.weights), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(subject.config))
    return folder


def model_of_config(config: Mapping[str, Any]) -> sy.Model:
    """What ``sy.load`` makes of a bare config.json."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        return sy.load(path)


def random_weights(graph: sy.Graph) -> dict[str, np.ndarray]:
    """f32 weights that neither fade nor explode: matrices scaled by the root of their width, norms near 1."""
    random = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = random.standard_normal(shape, dtype=np.float32)
        array *= np.float32(shape[-1] ** -0.5 if len(shape) > 1 else 0.03)
        if len(shape) == 1 and not name.endswith("bias"):
            array += np.float32(1)
        return array

    return {node.name: draw(node.name, node.tensor.static_shape) for node in graph.parameters}
