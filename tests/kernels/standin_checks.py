"""All kernel checks of `benches/gpu_check.py` up to their comparisons, on the stand-in.

`test_standin.py` runs this in a process of its own. Launches do nothing, so that a comparison looks
at shapes and types alone; anything but a comparison that fails is a fault of the host's code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))

import device_checks as checks
import gpu_check


def test_all_checks_reach_their_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def same_kind(found: Any, expected: Any, *_: Any, **__: Any) -> None:
        found, expected = np.asarray(found), np.asarray(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        compared.append(found.shape)

    for name in ("assert_array_equal", "assert_allclose"):
        monkeypatch.setattr(np.testing, name, same_kind)
    monkeypatch.setattr(checks, "_activated", lambda pre, *arrays: same_kind(*arrays))
    reached = []

    class Record(gpu_check.Record):
        def run(self, name: str, step: Any) -> Any:
            before = len(compared)
            value = super().run(name, step)
            failure = self.data["checks"][-1]["failure"]
            # The fault is an integer that no kernel has written.
            by_comparison = failure is not None and failure.startswith("AssertionError: fault is")
            if by_comparison or (failure is None and len(compared) > before):
                reached.append(name)
            return value

    record = Record(None, 0, None)
    gpu_check.check_kernels(record, np.random.default_rng(0), 0.0)
    names = [check["name"] for check in record.data["checks"]]
    assert names and reached == names, set(names) - set(reached)
