"""T5: an encoder and a decoder with a clock each; scores know distances by learned buckets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.language import einsum, history, parameter, position, whole
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, attention, embedding, linear, mix, mlp, rms_norm, two_sided_attention
from ..family import Family
from ..positions import UNLIMITED, buckets_of, gains_of_buckets, two_sided_buckets
from ..spec import Config, Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class T5:
    inputs: ClassVar[Mapping[str, str]] = {"source": "i32[]@source", "target": "i32[]@target"}
    harmless: ClassVar[frozenset[str]] = frozenset({"dropout_rate", "n_positions"})  # no limit: buckets

    vocab_size: Size
    d_model: Size
    d_kv: Size = 64
    d_ff: Size
    num_layers: Size
    num_decoder_layers: Size | None = None
    num_heads: Size
    relative_attention_num_buckets: Size = 32
    relative_attention_max_distance: Size = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    dense_act_fn: str | None = None
    is_gated_act: bool | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None

    def __post_init__(self) -> None:
        for name, value in (("dense_act_fn", self.act), ("is_gated_act", self.gated)):
            if getattr(self, name) not in (None, value):
                raise SystolicError(f"{name} contradicts feed_forward_proj {self.feed_forward_proj!r}")
        if self.relative_attention_num_buckets < 4:
            raise SystolicError("relative_attention_num_buckets must be at least 4")
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise SystolicError("relative_attention_max_distance is not beyond half of the buckets")
        if not self.is_encoder_decoder:
            raise SystolicError("is_encoder_decoder is false, but T5 is built with an encoder and a decoder")

    @property
    def context_length(self) -> int:
        return UNLIMITED

    @property
    def gated(self) -> bool:
        return self.feed_forward_proj.startswith("gated-")

    @property
    def act(self) -> str:
        """``gated-gelu`` means the form with a hyperbolic tangent; ``gelu`` does not."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.gated and name == "gelu" else name

    # ---- what variants differ in ----

    @property
    def is_scaled(self) -> bool:
        """Whether the head reads the decoder's output divided by the root of its width."""
        scaled = self.scale_decoder_outputs
        return self.tie_word_embeddings if scaled is None else scaled

    def has_table(self, i: int) -> bool:
        """Whether layer ``i`` has a table of distances; the others use the one before."""
        return i == 0

    # ---- the model ----

    def step(self, source: Stream, target: Stream) -> dict[str, Stream]:
        """i32[]@source, i32[]@target -> {"logits": f32[V]@target}"""
        with scope("encoder"):
            memory = whole(self.encode(source))
        with scope("decoder"):
            x = self.decode(target, memory)
        with scope("head"):
            x = x * self.d_model**-0.5 if self.is_scaled else x
            table = "shared" if self.tie_word_embeddings else "lm_head"
            return {"logits": linear(x, table, self.vocab_size).named("logits")}

    def encode(self, token: Stream) -> Stream:
        """i32[] -> f32[M]: what the decoder reads of each position of the source."""
        x, distances = self.embed(token), None
        for i in range(self.num_layers):
            name = f"encoder.block.{i}.layer"
            with scope(f"layers.{i}"):
                if self.has_table(i):
                    distances = self.two_sided_distances(f"{name}.0.SelfAttention")
                with scope("attn"):
                    q, k, v = self.heads(self.norm(x, f"{name}.0.layer_norm"), f"{name}.0.SelfAttention")
                    mixed = two_sided_attention(q, k, v, scale=1.0, bias=distances)
                    x = (x + self.output(mixed, f"{name}.0.SelfAttention")).named("x")
                x = self.feed_forward(x, f"{name}.1")
        return self.norm(x, "encoder.final_layer_norm").named("encoded")

    def decode(self, token: Stream, memory: Stream) -> Stream:
        """i32[], f32[whole@source,M] -> f32[M]"""
        x, distances = self.embed(token), None
        for i in range(self.num_decoder_layers or self.num_layers):
            name = f"decoder.block.{i}.layer"
            with scope(f"layers.{i}"):
                if self.has_table(i):
                    distances = self.distances(f"{name}.0.SelfAttention")
                with scope("attn"):
                    q, k, v = self.heads(self.norm(x, f"{name}.0.layer_norm"), f"{name}.0.SelfAttention")
                    mixed = attention(q, k, v, scale=1.0, bias=distances)
                    x = (x + self.output(mixed, f"{name}.0.SelfAttention")).named("x")
                with scope("cross"):
                    normal = self.norm(x, f"{name}.1.layer_norm")
                    mixed = self.read_memory(normal, memory, f"{name}.1.EncDecAttention")
                    x = (x + self.output(mixed, f"{name}.1.EncDecAttention")).named("x")
                x = self.feed_forward(x, f"{name}.2")
        return self.norm(x, "decoder.final_layer_norm")

    def embed(self, token: Stream) -> Stream:
        return embedding(token, "shared", self.vocab_size, self.d_model)

    def norm(self, x: Stream, name: str) -> Stream:
        return rms_norm(x, name, self.layer_norm_epsilon)

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        """Queries [H, 1, D], keys [H, D] and values [H, D]."""
        heads, size = self.num_heads, self.d_kv
        q, k, v = (linear(x, f"{name}.{part}", heads * size).reshape(heads, size) for part in "qkv")
        return q[:, None], k, v

    def read_memory(self, x: Stream, memory: Stream, name: str) -> Stream:
        """What each head reads of the source: [H, 1, D]."""
        heads, size = self.num_heads, self.d_kv
        q = linear(x, f"{name}.q", heads * size).reshape(heads, 1, size)
        weights = (parameter(f"{name}.{part}.weight", (heads * size, self.d_model)) for part in "kv")
        keys, values = (einsum("sm,hdm->shd", memory, w.reshape(heads, size, -1)) for w in weights)
        return mix(q, keys.named("k"), values.named("v"), scale=1.0)

    def output(self, mixed: Stream, name: str) -> Stream:
        return linear(mixed.reshape(self.num_heads * self.d_kv), f"{name}.o", self.d_model)

    def feed_forward(self, x: Stream, name: str) -> Stream:
        block = f"{name}.DenseReluDense"
        with scope("mlp"):
            normal = self.norm(x, f"{name}.layer_norm")
            if not self.gated:
                return (x + mlp(normal, f"{block}.wi", f"{block}.wo", self.d_ff, self.act, bias=False)).named(
                    "x"
                )
            gate = activation(self.act)(linear(normal, f"{block}.wi_0", self.d_ff))
            hidden = gate * linear(normal, f"{block}.wi_1", self.d_ff)
            return (x + linear(hidden, f"{block}.wo", self.d_model)).named("x")

    # ---- distances ----

    def distances(self, name: str) -> Stream:
        """What the scores of the past gain by its distance: [H, 1, past]."""
        count, farthest = self.relative_attention_num_buckets, self.relative_attention_max_distance
        now = position("target")
        return self.table(name, buckets_of(now - history(now), count, farthest))

    def two_sided_distances(self, name: str) -> Stream:
        """The same for the whole source; what is ahead has the second half of the table: [H, 1, whole]."""
        count, farthest = self.relative_attention_num_buckets, self.relative_attention_max_distance
        return self.table(name, two_sided_buckets(count, farthest, "source"))

    def table(self, name: str, buckets: Stream) -> Stream:
        shape = (self.relative_attention_num_buckets, self.num_heads)
        return gains_of_buckets(f"{name}.relative_attention_bias", shape, buckets)


@dataclass(frozen=True, kw_only=True)
class Mt5(T5):
    feed_forward_proj: str = "gated-gelu"

    @property
    def is_scaled(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Umt5(T5):
    harmless: ClassVar[frozenset[str]] = T5.harmless | {"scalable_attention"}  # which nothing reads

    feed_forward_proj: str = "gated-gelu"

    @property
    def is_scaled(self) -> bool:
        return True

    def has_table(self, i: int) -> bool:
        return True


def with_head_of_file(config: Config, stored: Collection[str] | None) -> Config:
    """A head in the files is used whether or not the config ties it to the embedding; older configs say
    by the same flag whether the head's input is scaled. ``stored`` names the tensors, where known."""
    tied = config.boolean("tie_word_embeddings") if "tie_word_embeddings" in config.values else True
    scaled = config.values.get("scale_decoder_outputs")
    settled = {
        "tie_word_embeddings": tied if stored is None else "lm_head.weight" not in stored,
        "scale_decoder_outputs": tied if scaled is None else scaled,
    }
    return replace(config, values={**config.values, **settled})


_NAMING = Naming(
    unused=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    tied={f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")},
)
FAMILIES = {
    name: Family(model, _NAMING, with_head_of_file)
    for name, model in (("t5", T5), ("mt5", Mt5), ("umt5", Umt5))
}
