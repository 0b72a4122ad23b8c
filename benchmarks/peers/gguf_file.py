"""Writes a GGUF file from a subject's weights, as llama.cpp reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from ..subjects import Subject

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4-32": gguf.GGMLQuantizationType.Q4_0,
}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
    "int4-32": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_OF_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(subject: Subject, dtype: str, path: Path) -> None:
    """A Llama; matrices are kept as ``dtype`` (f32, bf16, int8 as Q8_0, int4-32 as Q4_0), norms as f32.

    The file says that it has no vocabulary, only how many tokens there are, so that it is read by ids.
    """
    config = subject.config
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(subject.name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, array in llama_tensors(subject, heads, config["num_key_value_heads"]):
        kind = TYPES[dtype] if array.ndim == 2 else TYPES["f32"]
        data = array if kind == TYPES["f32"] else gguf.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_tensors(subject: Subject, heads: int, key_heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by its name in the file."""
    for name, array in subject.weights.items():
        stem = name.removesuffix(".weight")
        if stem in _OF_MODEL:
            yield f"{_OF_MODEL[stem]}.weight", array
            continue
        layer, _, inner = stem.removeprefix("model.layers.").partition(".")
        if inner in ("self_attn.q_proj", "self_attn.k_proj"):
            array = interleaved(array, heads if inner.endswith("q_proj") else key_heads)
        yield f"blk.{layer}.{_OF_LAYER[inner]}.weight", array


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head with its two halves interleaved: checkpoints rotate value i of a head with value
    i + D/2, llama.cpp rotates 2i with 2i + 1."""
    halves = matrix.reshape(heads, 2, -1, matrix.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)
