"""Speed and memory, measured side by side on the same machine."""

import os
import time

import runtime as runtime  # prepares torchvision on a CPU-only torch


def conditions(command: str, machine: str = "") -> str:
    """Return the lines of a page that say where, when and of which code it was measured, by which command.

    `machine` is added to the line about the machine.
    """
    from runtime import provenance  # not at the top: benchmarks/gpu_check.py names packages that are missing

    facts = provenance.collect()
    parts = [*filter(None, [facts["gpu"]]), f"{facts['processor']}, {facts['cores']} cores"]
    dirty = " with uncommitted changes" if facts["dirty"] else ""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"""- machine: {"; ".join(parts)}{machine}
- commit: {facts["commit"]}{dirty}; torch {facts["versions"]["torch"]}
- {time.strftime("%Y-%m-%d")}; load average at the end: {load}
- made by `{command}`
"""
