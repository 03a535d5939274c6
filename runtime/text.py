"""How numbers are told to people."""

from __future__ import annotations


def describe_seconds(seconds: float) -> str:
    """ "8 s", "3 min 20 s", "2 h 5 min", "3 d 4 h": two units at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def describe_bytes(count: float) -> str:
    """ "512 B", "8.4 MB", "17.0 GB": powers of 1000, as disks and the reports' memory have them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
