"""A pytest plugin for CI: a test that is skipped, expected to fail or deselected fails."""

from __future__ import annotations

from collections.abc import Generator

import pytest

Report = pytest.CollectReport | pytest.TestReport
_DESELECTED = pytest.StashKey[list[pytest.Item]]()


def _failed(report: Report) -> Report:
    expected = report.__dict__.pop("wasxfail", None)
    if report.skipped or expected is not None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else f"xfail: {expected}"
        report.outcome, report.longrepr = "failed", f"{reason} (GECKO_MLC_NO_SKIP=1)"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Report, Report]:
    return _failed((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, Report, Report]:
    return _failed((yield))


def pytest_deselected(items: list[pytest.Item]) -> None:
    items[0].config.stash.setdefault(_DESELECTED, []).extend(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """Takes in again what others take out."""
    yield
    items += config.stash.get(_DESELECTED, [])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item in item.config.stash.get(_DESELECTED, []):
        pytest.fail("deselected (GECKO_MLC_NO_SKIP=1)", pytrace=False)
