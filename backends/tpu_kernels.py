"""Contractions as kernels of our own on a TPU: Pallas, with tiles and an order of loops of our choosing.

What Pallas lowers a kernel to is a custom call with one string of configuration. That string is all that is
taken from it, so that the kernel stands in StableHLO of our own, under the name of our node.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..compiler.cost.kernels import KernelTiling, Product

_TYPES: Mapping[str, Any] = {"bf16": jnp.bfloat16, "f32": jnp.float32, "i8": jnp.int8, "i32": jnp.int32}
_CONFIG = re.compile(r'@tpu_custom_call\(.*?backend_config = ("(?:[^"\\]|\\.)*")')


def multiply(
    lhs: jax.Array, rhs: jax.Array, product: Product, tiling: KernelTiling, interpret: bool = False
) -> jax.Array:
    """lhs · rhs as ``product`` has it, tile by tile. ``interpret``: on any device, slowly, to check it."""
    sizes = {"m": product.m, "k": product.k, "n": product.n}
    tile = {"m": tiling.m, "k": tiling.k, "n": tiling.n}
    loops = {axis: place for place, axis in enumerate(tiling.order)}

    def block(axes: str) -> pl.BlockSpec:
        return pl.BlockSpec(tuple(tile[a] for a in axes), lambda *at: tuple(at[loops[a]] for a in axes))

    rhs_axes = "nk" if product.is_transposed else "kn"
    grid = tuple(pl.cdiv(sizes[axis], tile[axis]) for axis in tiling.order)
    return pl.pallas_call(
        functools.partial(_step, product=product, depth=tiling.k, loop=loops["k"], last=grid[loops["k"]] - 1),
        grid=grid,
        in_specs=[block("mk"), block(rhs_axes)],
        out_specs=block("mn"),
        out_shape=jax.ShapeDtypeStruct((product.m, product.n), _TYPES[product.result]),
        scratch_shapes=[pltpu.VMEM((tiling.m, tiling.n), _TYPES[product.accumulator])],
        interpret=interpret,
    )(lhs, rhs)


def _step(
    lhs: Any, rhs: Any, result: Any, sums: Any, *, product: Product, depth: int, loop: int, last: int
) -> None:
    """One tile of lhs times one of rhs, added to the sums; they are cleared before the first along k, and
    handed over after the last. Where there is only one, the compiler leaves the sums out."""
    at = pl.program_id(loop)

    @pl.when(at == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    rhs_axis = 1 if product.is_transposed else 0
    left, right = lhs[...], rhs[...]
    if product.k % depth:  # what lies beyond k is not zero, and need not be a number
        left = _only_inside(left, 1, product.k - at * depth)
        right = _only_inside(right, rhs_axis, product.k - at * depth)
    dimensions = (((1,), (rhs_axis,)), ((), ()))
    sums[...] += jax.lax.dot_general(
        left.astype(right.dtype), right, dimensions, preferred_element_type=sums.dtype
    )

    @pl.when(at == last)
    def _() -> None:
        result[...] = sums[...].astype(result.dtype)


def _only_inside(tile: jax.Array, axis: int, length: jax.Array) -> jax.Array:
    inside = jax.lax.broadcasted_iota(jnp.int32, tile.shape, axis) < length
    return jnp.where(inside, tile, jnp.zeros_like(tile))


@functools.cache
def kernel_config(product: Product, tiling: KernelTiling) -> str:
    """The kernel as the configuration of a custom call, an MLIR string literal."""
    kernel = jax.jit(functools.partial(multiply, product=product, tiling=tiling))
    rhs = (product.n, product.k) if product.is_transposed else (product.k, product.n)
    shapes = (
        jax.ShapeDtypeStruct((product.m, product.k), _TYPES[product.lhs]),
        jax.ShapeDtypeStruct(rhs, _TYPES[product.rhs]),
    )
    text = jax.export.export(kernel, platforms=["tpu"])(*shapes).mlir_module()
    found = _CONFIG.search(text)
    assert found is not None, "Pallas lowers a kernel to @tpu_custom_call"
    return found[1]


def kernel_operation(product: Product, tiling: KernelTiling, lhs: str, rhs: str, name: str) -> str:
    """The StableHLO operation, without its signature, that runs the kernel on two SSA values."""
    order = "dense<[1, 0]> : tensor<2xindex>"
    return (
        f"stablehlo.custom_call @tpu_custom_call({lhs}, {rhs}) {{backend_config = "
        f'{kernel_config(product, tiling)}, kernel_name = "{name}", '
        f"operand_layouts = [{order}, {order}], result_layouts = [{order}]}}"
    )
