"""The processor, and the kind of machine that its instructions make it."""

from __future__ import annotations

import pytest

from systolic.backends import processor
from systolic.backends.processor import KINDS, OTHER, Processor, in_words, this_processor


@pytest.mark.parametrize(
    ("architecture", "instructions", "kind"),
    [
        ("x86_64", "fpu sse2 avx avx2 fma avx512f avx512bw", "avx512"),
        ("x86_64", "fpu sse2 avx avx2 fma", "avx2"),
        ("x86_64", "fpu sse2 avx", "sse"),
        ("AMD64", "", "sse"),  # Windows tells no instructions
        ("aarch64", "fp asimd", "neon"),
        ("arm64", "", "neon"),
        ("riscv64", "", OTHER),
    ],
)
def test_a_kind_is_the_widest_vectors(architecture, instructions, kind):
    assert Processor(architecture, "any", instructions).kind == kind


def test_linux_tells_the_name_and_the_instructions(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "INFO", info)
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    core = "cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nflags\t\t: sse2 avx2 fma\n\n"
    info.write_text(2 * core)
    assert this_processor() == Processor("x86_64", "AMD EPYC (family 25, model 1)", "sse2 avx2 fma")
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    info.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert this_processor() == Processor("aarch64", "aarch64", "fp asimd")
    info.unlink()
    assert this_processor().kind == "neon"


def test_kinds_have_words():
    assert [in_words(kind) for kind in KINDS] == ["AVX-512", "AVX2", "SSE", "NEON"]
    assert in_words("nvidia-h200") == "nvidia-h200"
