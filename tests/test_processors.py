"""Processors that a process may use."""

import os

from simflow_plugin.processors import num_usable_processors


def test_they_are_those_that_the_process_is_bound_to(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert num_usable_processors() == 3


def test_they_are_all_where_a_system_binds_none(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert num_usable_processors() == 6
