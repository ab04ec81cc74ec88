"""The machine in pytest's header: no time means anything without it."""

from __future__ import annotations

from .harness import machine


def pytest_report_header() -> str:
    return machine.header(machine.describe())
