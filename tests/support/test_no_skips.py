"""In CI, a test that is not run fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent
TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skip(reason="not today")
def test_marked():
    raise AssertionError

@pytest.mark.skipif(True, reason="not today")
def test_conditional():
    raise AssertionError

def test_skips():
    pytest.skip("not today")

@pytest.mark.xfail(reason="broken")
def test_expected_to_fail():
    raise AssertionError

@pytest.mark.xfail(reason="broken")
def test_unexpectedly_passes():
    pass
"""


def outcomes(folder: Path, *options: str) -> str:
    """The last line of a run with the plugin."""
    return run(folder, {}, "-p", "support.no_skips", *options)


def run(folder: Path, variables: dict[str, str], *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT.parent), **variables}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", *options, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_what_is_not_run_fails(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    assert "3 failed, 1 passed, 2 errors in" in outcomes(tmp_path, *workers)


def test_so_does_what_is_deselected(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_passes():\n    pass\n\ndef test_other():\n    pass\n")
    assert "1 passed, 1 deselected, 1 error in" in outcomes(tmp_path, "-k", "passes")


def test_so_does_a_module_that_skips_itself(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    assert "1 error in" in outcomes(tmp_path)


def test_a_variable_turns_it_on(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").symlink_to(SUPPORT.parent / "conftest.py")
    (tmp_path / "test_some.py").write_text(TESTS)
    assert "3 failed, 1 passed, 2 errors in" in run(tmp_path, {"GECKO_MLC_NO_SKIP": "1"})
    assert "1 passed, 3 skipped, 1 xfailed, 1 xpassed in" in run(tmp_path, {"GECKO_MLC_NO_SKIP": "0"})
