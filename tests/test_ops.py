"""Every op on every backend: claimed type = NumPy semantics = emitted NumPy = XLA = jax.numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from op_samples import ERRORS, SAMPLED_THROUGH_OTHERS, SAMPLES, TIME_OPS, ErrorSample, Sample, program_of
from quick_programs import QUICK

from systolic.backends.jax_table import JAX, to_jax
from systolic.backends.numpy_backend import NumpyBackend
from systolic.backends.numpy_ops import EXPRESSIONS
from systolic.backends.stablehlo import LOWERINGS
from systolic.backends.xla import XlaBackend
from systolic.ir.errors import GraphError
from systolic.ir.graph import make_node
from systolic.ir.ops import OPS
from systolic.ir.types import TensorType, dtype_name, parse_type

pytestmark = pytest.mark.optimised

# Relative to max(1, |value|). The samples sum at most some 30 products, so float32 differs by the order of
# a few roundings of 6e-8 and by the accuracy of exp, pow and erf (some 1e-6). Half types round at 5e-4
# (f16) and 4e-3 (bf16), and some backends round between the steps of softmax or sigmoid, others do not.
TOLERANCES = {"f64": 1e-12, "f32": 1e-5, "f16": 4e-3, "bf16": 2e-2}

Results = Mapping[str, Any]


@pytest.fixture(scope="module")
def numpy_results() -> Results:
    program, values = program_of(SAMPLES)
    return NumpyBackend().prepare(program).run({}, values, {})[0]


@pytest.fixture(scope="module")
def xla_results() -> Results:
    program, values = program_of(SAMPLES)
    backend = XlaBackend("cpu", native=False)
    results, _ = backend.prepare(program).run({}, values, {})
    return {name: backend.fetch(array) for name, array in results.items()}


@pytest.fixture(scope="module")
def jax_results() -> Results:
    program, values = program_of(SAMPLES)
    with jax.enable_x64(True):
        # It is the table that is tested.
        return jax.jit(to_jax(program), compiler_options=QUICK)({}, values, {})[0]


def close(got: Any, want: np.ndarray) -> None:
    """The same type, shape and, up to rounding, values."""
    got = np.asarray(got)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    tolerance = TOLERANCES.get(dtype_name(want.dtype), 0.0)
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def check(results: Results, sample: Sample) -> None:
    for i, want in enumerate(sample.expected()):
        close(results[f"{sample.name}.{i}"], want)


samples = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


@samples
def test_the_claimed_type_is_that_of_the_value(sample: Sample) -> None:
    types = [TensorType(array.shape, dtype_name(array.dtype)) for array in sample.operands]
    claimed = OPS[sample.op].infer(*types, **sample.params)
    for type_, value in zip(
        claimed if isinstance(claimed, tuple) else (claimed,), sample.expected(), strict=True
    ):
        assert type_ == TensorType(value.shape, dtype_name(value.dtype))


@samples
def test_emitted_numpy(sample: Sample, numpy_results: Results) -> None:
    check(numpy_results, sample)


@samples
def test_stablehlo(sample: Sample, xla_results: Results) -> None:
    check(xla_results, sample)


@samples
def test_jax(sample: Sample, jax_results: Results) -> None:
    check(jax_results, sample)


@pytest.mark.parametrize("table", [EXPRESSIONS, LOWERINGS, JAX], ids=["numpy", "stablehlo", "jax"])
def test_a_table_covers_exactly_the_ops_that_programs_have(table: Mapping[str, Callable]) -> None:
    assert set(table) == set(OPS) - TIME_OPS


def test_every_op_is_sampled() -> None:
    assert {sample.op for sample in SAMPLES} == set(OPS) - TIME_OPS - SAMPLED_THROUGH_OTHERS
    names = [sample.name for sample in SAMPLES]
    assert len(set(names)) == len(names)


def test_the_comparison_can_fail() -> None:
    close(np.float32(1.0), np.array(1.0 + 1e-6, np.float32))
    for wrong in (np.float32(1.0001), np.float64(1.0), np.ones(1, np.float32)):
        with pytest.raises(AssertionError):
            close(wrong, np.array(1.0, np.float32))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{error.op} {','.join(error.types)}")
def test_what_an_op_refuses(error: ErrorSample) -> None:
    sources = [
        make_node(OPS["parameter"], (), {"type": parse_type(text)}, name=f"x{i}")
        for i, text in enumerate(error.types)
    ]
    with pytest.raises(GraphError, match=error.message):
        make_node(OPS[error.op], sources, error.params)
