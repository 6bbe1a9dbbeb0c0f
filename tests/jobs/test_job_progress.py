"""A long job says how far it is, also where nobody sees a bar."""

from io import StringIO

import pytest
from rich.console import Console

from jobs import job_progress
from jobs.job_progress import JobProgress


def said(monkeypatch: pytest.MonkeyPatch, *, every_s: float, terminal: bool) -> str:
    monkeypatch.setattr(job_progress, "TELL_S", every_s)
    found = StringIO()
    with JobProgress(
        Console(file=found, force_terminal=terminal, width=80), what="reading headers"
    ) as shown:
        shown.update(1_000, 2_000)
        shown.what = "storing groups"
        shown.update(5, 7)
    return found.getvalue()


def test_a_log_gets_a_line_of_every_stage(monkeypatch):
    lines = said(monkeypatch, every_s=0.0, terminal=False).splitlines()
    assert lines == ["reading headers: 1,000 of 2,000", "storing groups: 5 of 7"]


def test_a_log_gets_no_more_lines_than_one_every_so_often(monkeypatch):
    assert said(monkeypatch, every_s=60.0, terminal=False) == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    shown = said(monkeypatch, every_s=0.0, terminal=True)
    assert "5/7" in shown
    assert "5 of 7" not in shown
