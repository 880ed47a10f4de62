"""Settings that a verb of one process would ignore are refused."""

from __future__ import annotations

import pytest

from omnichat.assembly import one_process
from omnichat.training.processes import LaunchConfig
from omnichat.utils.errors import UserError


def test_settings_of_launch_are_refused_where_they_would_be_ignored() -> None:
    one_process(LaunchConfig(timeout_sec=60.0), "bench")
    for launch, words in (
        (LaunchConfig(processes=2), r"launch\.processes=2: omnichat bench runs in one process; leave it at 1"),
        (LaunchConfig(strategy="fsdp2"), r"launch\.strategy=fsdp2"),
        (LaunchConfig(cpu=True), r"launch\.cpu=True"),
    ):
        with pytest.raises(UserError, match=words):
            one_process(launch, "bench")
