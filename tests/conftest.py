"""Fixtures that several test files use."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from quick_programs import QUICK, quick_programs

from systolic.runner.cli import main

ROOT = Path(__file__).resolve().parent.parent

CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1500,1000"
)


@pytest.fixture(scope="module", autouse=True)
def xla_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs are as XLA optimises them where a file is marked ``optimised``, elsewhere compiled quickly.

    Marked are the files that test what the backend writes; the others test what is done with programs.
    ``--optimised`` is for all files, and worth its time where jaxlib changes.
    """
    is_quick = request.node.get_closest_marker("optimised") is None
    with _quickly(request) if is_quick else nullcontext():
        yield


@pytest.fixture
def quick_xla(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of a test are compiled quickly, in a file that is marked."""
    with _quickly(request):
        yield


def _quickly(request: pytest.FixtureRequest) -> AbstractContextManager[None]:
    return nullcontext() if request.config.getoption("--optimised") else quick_programs()


@pytest.fixture
def quick_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of jax are compiled as quickly."""
    import jax  # most files do without it

    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=QUICK))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded reference data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SYSTOLIC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the reference data at {folder} is absent (set SYSTOLIC_SHARED)")
    return folder


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``systolic`` in this process: the exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["systolic", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as finished:
            status = int(finished.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the texts in tests/golden anew")
    parser.addoption("--optimised", action="store_true", help="compile every program as a user's is")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: the text must be that of tests/golden/NAME.txt."""

    def check(name: str, text: str) -> None:
        file = ROOT / "tests" / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text + "\n")
        assert file.exists(), f"{file} is missing; write it with --update-golden"
        assert text + "\n" == file.read_text()

    return check


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser without a window; what needs one is skipped, with the reason, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in [*CHROMIUM_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
