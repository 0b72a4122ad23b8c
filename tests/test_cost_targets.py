"""Targets: figures with sources, TOML files of one's own, and what the commands print."""

from __future__ import annotations

import json

import pytest

from systolic.compiler import cost
from systolic.compiler.cost.calibrate import measured_cpu
from systolic.compiler.cost.targets import load_target
from systolic.ir.errors import SystolicError

MINE = """
name = "mine"
[arrays]
rows = 64
columns = 32
clock_hz = 1e9
dataflow = "os"
[memory]
on_chip_bytes = 1_000_000
hbm_bytes_per_second = 32e9
"""


@pytest.mark.parametrize("name", cost.preset_names())
def test_every_figure_of_a_preset_has_a_source(name):
    target = load_target(name)
    assert target.name == name
    assert not [figure for figure in target.figures() if not target.source(figure)]


@pytest.mark.parametrize("name", cost.preset_names())
def test_peaks_are_those_of_the_arrays(name):
    target = load_target(name)
    for dtype, peak in target.peak.items():
        arrays = target.arrays
        cells = arrays.rows * arrays.columns * arrays.count * target.macs_per_cell(dtype)
        assert peak == pytest.approx(2 * cells * arrays.clock_hz, rel=0.03)


@pytest.mark.parametrize("name", ["tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-7x"])
def test_a_generation_has_at_most_five_fitted_constants(name):
    target = load_target(name)
    fitted = [
        figure
        for figure, value in target.figures().items()
        if figure.startswith("compiler.") and type(value) is float and value
        if target.source(figure).startswith("fitted")
    ]
    assert len(fitted) == 5


def test_a_target_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(MINE)
    found = cost.matmul(100, 200, 300, "int8", str(file))
    assert found.target == "mine"
    assert found.tiling["dataflow"] == "os"
    assert found.cycles > found.compute_cycles == 2 * 10 * (2 * 64 + 32 + 200 - 2)
    assert found.seconds == pytest.approx(found.cycles * 1e-9)


@pytest.mark.parametrize("name", cost.preset_names())
def test_a_target_is_written_as_it_is_read(name, tmp_path):
    file = tmp_path / f"{name}.toml"
    file.write_text(load_target(name).to_toml())
    assert load_target(str(file)) == load_target(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows = 64", "rows = 64.5", r"mine.toml: \[arrays\] rows is 64.5; expected int"),
        ("rows = 64", "rows = 0", "at least one row"),
        ("rows = 64", "", r"\[arrays\] lacks 'rows'"),
        ("rows = 64", "rows = 64\nheight = 3", r"\[arrays\] has no field 'height'; expected some of rows"),
        ("[memory]", "[vector]\nlanes = -3\n[memory]", "vector.lanes is -3; expected a number that is not"),
        ('"os"', '"rs"', "dataflow 'rs' is not one of"),
        ("[arrays]", "[arrays", "not a TOML file"),
        ("[arrays]", "vector = 3\n[arrays]", r"\[vector\] is 3; expected a table"),
    ],
)
def test_mistakes_in_a_file_are_told(old, new, message, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(MINE.replace(old, new))
    with pytest.raises(SystolicError, match=message):
        load_target(str(file))


def test_the_cpu_is_measured_on_the_spot(tmp_path):
    file = tmp_path / "cpu.toml"
    file.write_text(measured_cpu().to_toml())
    found = cost.matmul(64, 4096, 4096, "f32", str(file))
    assert found.cycles is None
    assert found.seconds > 0
    assert found.bound in ("memory", "arithmetic")


def test_a_device_of_jax_is_measured_as_a_gpu_would_be(tmp_path):
    from systolic.backends.device_rates import measured_device

    measured = measured_device("cpu", matmul_size=64, copy_bytes=1 << 20)
    assert set(measured.peak) == {"f32", "bf16", "f16", "i8"}
    assert min(measured.peak.values()) > 0
    assert not [figure for figure in measured.figures() if not measured.source(figure)]
    file = tmp_path / "gpu.toml"
    file.write_text(measured.to_toml())
    assert load_target(str(file)) == measured
    found = cost.matmul(8, 512, 512, "bf16", str(file))
    assert (found.cycles, found.seconds > 0) == (None, True)


def test_a_platform_that_jax_lacks_is_told(cli):
    status, out, err = cli("targets", "--calibrate", "--platform", "rocm")
    assert (status, out) == (2, "")
    assert "has no rocm on this machine (it has: cpu); install jax with support for it" in err
    assert len(err.splitlines()) == 1


def test_cost_of_a_matmul(cli):
    status, out, _ = cli("cost", "--matmul", "512,4096,14336", "--target", "tpu-v5e")
    assert status == 0
    assert "[512, 4096] · [4096, 14336] bf16 on tpu-v5e" in out
    assert "alternative" in out
    status, out, _ = cli("cost", "--matmul", "512,4096,14336", "--dtype", "int8", "--json")
    found = json.loads(out)
    fields = ("cycles", "seconds", "bound", "tiling", "hbm_bytes", "utilization", "alternatives")
    assert not [name for name in fields if found[name] is None]
    assert found["cycles"] == cost.matmul(512, 4096, 14336, "int8").cycles


def test_cost_on_another_array(cli):
    arguments = ("cost", "--matmul", "100,100,100", "--target", "scalesim", "--array", "8x8")
    status, out, _ = cli(*arguments, "--dataflow", "os", "--json")
    drained = json.loads(out)
    assert (status, drained["cycles"], drained["sram_reads"]) == (0, 169 * (8 + 8 + 8 + 98), 2 * 130_000)
    _, out, _ = cli(*arguments, "--dataflow", "os", "--scalesim-compatible", "--json")
    assert json.loads(out)["cycles"] == drained["cycles"] - 169 * 8
    assert {"sram_writes", "mapping_utilization", "compute_cycles"} <= set(drained)


def test_targets_are_listed(cli):
    status, out, _ = cli("targets")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(cost.preset_names())
    _, out, _ = cli("targets", "--json")
    first = json.loads(out)["targets"][0]
    assert first["figures"]["arrays.rows"]["value"] == 16
    assert "Configs.scala" in first["figures"]["arrays.rows"]["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--matmul", "1,2"), "--matmul is '1,2'; expected three sizes M,K,N"),
        (("--matmul", "1,2,3", "--array", "8"), "--array is '8'; expected rows and columns RxC"),
        (("--matmul", "1,2,3", "--target", "nowhere"), "target 'nowhere' is not known"),
        (("--matmul", "1,2,3", "--target", "nowhere.toml"), "nowhere.toml: No such file"),
    ],
)
def test_mistakes_end_in_one_sentence(cli, arguments, message):
    status, out, err = cli("cost", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
