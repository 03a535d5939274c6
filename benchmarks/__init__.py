"""Speed and memory, measured side by side on the same machine."""

import os
import time

import runtime as runtime  # prepares torchvision on a CPU-only torch
from runtime import provenance


def conditions(command: str, machine: str = "") -> str:
    """Return the lines of a page that say where, when and of which code it was measured, by which command.

    `machine` is added to the line about the machine.
    """
    facts = provenance.collect()
    parts = [*filter(None, [facts["gpu"]]), f"{facts['processor']}, {facts['cores']} cores"]
    dirty = " with uncommitted changes" if facts["dirty"] else ""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"""- machine: {"; ".join(parts)}{machine}
- commit: {facts["commit"]}{dirty}; torch {facts["versions"]["torch"]}
- {time.strftime("%Y-%m-%d")}; load average at the end: {load}
- made by `{command}`
"""
