"""Writes a GGUF file from a subject's weights, as llama.cpp reads it: Llamas, GPT-2, Mamba."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
# Tensors that it computes with as f32, whatever the matrices are kept as.
_ALWAYS_F32 = ("ssm_conv1d.weight", "ssm_a", "position_embd.weight")


@dataclass(frozen=True)
class Architecture:
    """How tensors of a family are called, of the model and of a layer whose names begin with ``layer``, and
    what else the file says."""

    layer: str
    of_model: Mapping[str, str]
    of_layer: Mapping[str, str]
    describe: Callable[[gguf.GGUFWriter, Mapping[str, Any]], None]
    change: Callable[[str, np.ndarray, Mapping[str, Any]], np.ndarray]


def write_gguf(subject: Subject, dtype: str, path: Path) -> None:
    """Matrices are kept as ``dtype`` (f32, bf16, int8 as Q8_0, int4-32 as Q4_0), everything else as f32.

    The file says that it has no vocabulary, only how many tokens there are, so that it is read by ids.
    """
    model_type = subject.config["model_type"]
    architecture = ARCHITECTURES[model_type]
    writer = gguf.GGUFWriter(path, model_type)
    writer.add_name(subject.name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_vocab_size(subject.config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    architecture.describe(writer, subject.config)
    for name, array in tensors(subject, architecture):
        block, _ = gguf.GGML_QUANT_SIZES[TYPES[dtype]]
        is_kept = array.ndim == 2 and array.shape[1] % block == 0 and not name.endswith(_ALWAYS_F32)
        kind = TYPES[dtype if is_kept else "f32"]
        data = array if kind == TYPES["f32"] else gguf.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(subject: Subject, architecture: Architecture) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by its name in the file, as the file has it."""
    for name, array in subject.weights.items():
        changed = architecture.change(name, array, subject.config)
        if name.startswith(architecture.layer):
            number, _, inner = name.removeprefix(architecture.layer).partition(".")
            yield f"blk.{number}.{_renamed(inner, architecture.of_layer)}", changed
        else:
            yield _renamed(name, architecture.of_model), changed


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """``table`` has whole names, or what stands before .weight and .bias."""
    stem, _, ending = name.rpartition(".")
    return table[name] if name in table else f"{table[stem]}.{ending}"


# ---- Llama ----


def _describe_llama(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _change_llama(name: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    turned = next((config[field] for ending, field in heads.items() if name.endswith(ending)), None)
    return array if turned is None else interleaved(array, turned)


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head with its two halves interleaved: checkpoints rotate value i of a head with value
    i + D/2, llama.cpp rotates 2i with 2i + 1."""
    halves = matrix.reshape(heads, 2, -1, matrix.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


# ---- GPT-2 ----


def _describe_gpt2(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _change_gpt2(name: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Its checkpoints keep matrices of layers as [in, out]."""
    is_turned = array.ndim == 2 and ".h." in f".{name}"
    return np.ascontiguousarray(array.T) if is_turned else array


# ---- Mamba ----


def _describe_mamba(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["intermediate_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["time_step_rank"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])


def _change_mamba(name: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """It keeps the decay itself, and a convolution without its middle axis."""
    if name.endswith("A_log"):
        return -np.exp(array)
    return array.reshape(len(array), -1) if name.endswith("conv1d.weight") else array


LLAMA = Architecture(
    "model.layers.",
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    _describe_llama,
    _change_llama,
)
GPT2 = Architecture(
    "transformer.h.",
    {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"},
    {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    _describe_gpt2,
    _change_gpt2,
)
MAMBA = Architecture(
    "backbone.layers.",
    {"backbone.embeddings": "token_embd", "backbone.norm_f": "output_norm"},
    {
        "norm": "attn_norm",
        "mixer.in_proj": "ssm_in",
        "mixer.conv1d": "ssm_conv1d",
        "mixer.x_proj": "ssm_x",
        "mixer.dt_proj": "ssm_dt",
        "mixer.A_log": "ssm_a",
        "mixer.D": "ssm_d",
        "mixer.out_proj": "ssm_out",
    },
    _describe_mamba,
    _change_mamba,
)
ARCHITECTURES: Mapping[str, Architecture] = {"llama": LLAMA, "gpt2": GPT2, "mamba": MAMBA}
