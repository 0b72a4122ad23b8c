"""The parts that families share: per-token functions from streams to streams.

Weights keep the names and shapes of the checkpoint. Nothing here knows a batch, a mask or a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..compiler.language import (
    absolute,
    delay,
    einsum,
    erf,
    exp,
    history,
    log,
    log1p,
    max,
    maximum,
    mean,
    minimum,
    parameter,
    position,
    reshape,
    rsqrt,
    sigmoid,
    softmax,
    split,
    stack,
    sum,
    take,
    tanh,
    whole,
)
from ..compiler.stream import Stream
from ..ir.errors import SystolicError

Activation = Callable[[Stream], Stream]


def embedding(token: Stream, name: str, count: int, width: int) -> Stream:
    """Row ``token`` of the table ``name``.weight [count, width]: f32[width]."""
    return take(parameter(f"{name}.weight", (count, width)), token)


def linear(x: Stream, name: str, size: int, *, bias: bool = False, axes: str = "nd") -> Stream:
    """``x`` [d] times ``name``.weight, plus ``name``.bias if there is one: [size].

    ``axes`` is how the checkpoint stores the weight: ``nd`` is [out, in], ``dn`` is [in, out].
    """
    shape = (size, *x.shape) if axes == "nd" else (*x.shape, size)
    y = einsum(f"d,{axes}->n", x, parameter(f"{name}.weight", shape))
    return y + parameter(f"{name}.bias", (size,)) if bias else y


def rms_norm(x: Stream, name: str, eps: float, *, offset: float = 0.0) -> Stream:
    """``x`` divided by the root of its mean square along the last axis, times weight + ``offset``."""
    weight = parameter(f"{name}.weight", x.shape[-1:])
    scale = weight + offset if offset else weight
    return x * rsqrt(mean(x * x, axis=-1, keepdims=True) + eps) * scale


def layer_norm(x: Stream, name: str, eps: float, *, bias: bool = True, offset: float = 0.0) -> Stream:
    """``x`` with mean 0 and variance 1 along the last axis, times weight + ``offset``, plus bias."""
    weight = parameter(f"{name}.weight", x.shape[-1:])
    y = standardize(x, eps) * (weight + offset if offset else weight)
    return y + parameter(f"{name}.bias", x.shape[-1:]) if bias else y


def standardize(x: Stream, eps: float) -> Stream:
    """``x`` with mean 0 and variance 1 along the last axis."""
    centred = x - mean(x, axis=-1, keepdims=True)
    return centred * rsqrt(mean(centred * centred, axis=-1, keepdims=True) + eps)


def attention(
    q: Stream,
    k: Stream,
    v: Stream,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    bias: Stream | None = None,
    sinks: Stream | None = None,
) -> Stream:
    """What the query heads ``q`` [K, G, D] read from all keys ``k`` [K, D] and values ``v`` [K, E] so far.

    G query heads share each of the K key heads. With ``window`` only the last positions are seen,
    this one included; ``softcap`` bounds the scores by cap * tanh(score / cap); ``bias`` is added to
    the scores [K, G, past]; ``sinks`` [K, G] is one more score of each head, that of nothing. Returns
    [K, G, E].
    """
    keys, values = history(k.named("k"), window), history(v.named("v"), window)
    return mix(q, keys, values, scale=scale, softcap=softcap, bias=bias, sinks=sinks)


def two_sided_attention(
    q: Stream, k: Stream, v: Stream, *, scale: float, bias: Stream | None = None
) -> Stream:
    """Like ``attention``, but every position sees the keys and values of the whole text."""
    return mix(q, whole(k.named("k")), whole(v.named("v")), scale=scale, bias=bias)


def mix(
    q: Stream,
    keys: Stream,
    values: Stream,
    *,
    scale: float,
    softcap: float | None = None,
    bias: Stream | None = None,
    sinks: Stream | None = None,
) -> Stream:
    """The values [S, K, E] of S positions, weighted by how their keys [S, K, D] fit ``q`` [K, G, D]."""
    scores = einsum("hgd,phd->hgp", q.named("q"), keys)
    if scale != 1.0:
        scores = scores * scale
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    if bias is not None:
        scores = scores + bias
    probabilities = softmax(scores.named("scores"), axis=-1).named("probs")
    mixed = einsum("hgp,phe->hge", probabilities, values)
    if sinks is not None:  # part of the sum of the softmax, whose share carries no value
        best = max(scores, axis=-1)
        total = log(sum(exp(scores - reshape(best, *best.shape, 1)), axis=-1)) + best
        mixed = mixed * reshape(sigmoid(total - sinks), *sinks.shape, 1)
    return mixed.named("mixed")


def at_position(x: Stream, t: int) -> Stream:
    """What ``x`` f32[...] is at position ``t`` of the whole text: the same seen from everywhere."""
    chosen = (whole(position()) == t).cast(x.dtype)
    return einsum("p,pd->d", chosen, whole(x))


def one_ahead(x: Stream) -> Stream:
    """What ``x`` f32[d] is one position ahead, in a text that is known as a whole; zeros behind its end."""
    now = position(str(x.node.clock))
    chosen = (whole(now) == now + 1).cast(x.dtype)
    return einsum("p,pd->d", chosen, whole(x))


def causal_convolution(x: Stream, name: str, size: int, *, kernel: int = 1, dilation: int = 1) -> Stream:
    """``name``.weight [size, d, kernel] over ``x`` [d] now and at multiples of ``dilation`` before: [size].

    The last element of the kernel meets the newest value; before the start there are zeros.
    """
    weight = parameter(f"{name}.weight", (size, *x.shape, kernel))
    y = einsum("kd,ndk->n", stack(_taps(x, kernel, dilation)), weight)
    return y + parameter(f"{name}.bias", (size,))


def depthwise_convolution(x: Stream, name: str, kernel: int, *, bias: bool = True) -> Stream:
    """Each element of ``x`` [d] with a kernel of its own, ``name``.weight [d, 1, kernel]: [d]."""
    weight = parameter(f"{name}.weight", (*x.shape, 1, kernel)).reshape(*x.shape, kernel)
    y = sum(stack(_taps(x, kernel, 1), axis=-1) * weight, axis=-1)
    return y + parameter(f"{name}.bias", x.shape) if bias else y


def _taps(x: Stream, kernel: int, dilation: int) -> list[Stream]:
    """The values that a kernel meets, oldest first."""
    return [delay(x, i * dilation) for i in reversed(range(kernel))]


def mlp(
    x: Stream, up: str, down: str, width: int, act: str, *, bias: bool = True, axes: str = "nd"
) -> Stream:
    """down(act(up(x))), with ``width`` elements between."""
    hidden = activation(act)(linear(x, up, width, bias=bias, axes=axes))
    return linear(hidden, down, _width(x), bias=bias, axes=axes)


def gated_mlp(x: Stream, name: str, width: int, act: str, *, bias: bool = False) -> Stream:
    """down_proj(act(gate_proj(x)) * up_proj(x)), with ``width`` elements between."""
    gate = activation(act)(linear(x, f"{name}.gate_proj", width, bias=bias))
    up = linear(x, f"{name}.up_proj", width, bias=bias)
    return linear(gate * up, f"{name}.down_proj", _width(x), bias=bias)


def fused_gated_mlp(x: Stream, name: str, width: int, act: str) -> Stream:
    """Like ``gated_mlp``, with the weights of gate and up in one, the gate's first."""
    gate, up = split(linear(x, f"{name}.gate_up_proj", 2 * width), [width, width])
    return linear(activation(act)(gate) * up, f"{name}.down_proj", _width(x))


def soft_cap(x: Stream, cap: float) -> Stream:
    """``x`` bounded by ``cap``, and nearly unchanged far below it."""
    return tanh(x / cap) * cap


def _width(x: Stream) -> int:
    (width,) = x.node.tensor.static_shape
    return width


def activation(name: str) -> Activation:
    """The activation that configs call ``name``; ``SystolicError`` lists the known ones."""
    if name not in ACTIVATIONS:
        raise SystolicError(f"activation {name!r} is unknown; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def relu(x: Stream) -> Stream:
    return maximum(x, 0.0)


def relu_squared(x: Stream) -> Stream:
    return relu(x) ** 2


def softplus(x: Stream) -> Stream:
    """log(1 + exp(x)), in a form that does not overflow."""
    return maximum(x, 0.0) + log1p(exp(-absolute(x)))


def silu(x: Stream) -> Stream:
    return x * sigmoid(x)


def quick_gelu(x: Stream) -> Stream:
    return x * sigmoid(x * 1.702)


def gelu(x: Stream) -> Stream:
    """x times the normal distribution function."""
    return x * (erf(x * math.sqrt(0.5)) + 1.0) * 0.5


def gelu_tanh(x: Stream) -> Stream:
    """The approximation of ``gelu`` by a hyperbolic tangent."""
    return x * (tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0) * 0.5


def mish(x: Stream) -> Stream:
    return x * tanh(softplus(x))


def hard_swish(x: Stream) -> Stream:
    return x * clip(x + 3.0, 0.0, 6.0) * (1 / 6)


def laplace(x: Stream) -> Stream:
    """The normal distribution function of mean sqrt(1/2) and variance 1/(4 pi) (Ma et al., 2022)."""
    return (erf((x - 0.707107) * (math.sqrt(0.5) / 0.282095)) + 1.0) * 0.5


def clip(x: Stream, low: float, high: float) -> Stream:
    return minimum(maximum(x, low), high)


ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_10": lambda x: clip(gelu(x), -10.0, 10.0),
    "gelu_accurate": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": hard_swish,
    "laplace": laplace,
    "leaky_relu": lambda x: maximum(x, x * 0.01),
    "linear": lambda x: x,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu_squared,
    "relu6": lambda x: clip(x, 0.0, 6.0),
    "sigmoid": sigmoid,
    "tanh": tanh,
}
