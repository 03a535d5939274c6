"""Where datasets lie."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """Where datasets lie that were given by name alone: $VICREGL_DATA, or data/cache beside this file."""
    return Path(os.environ.get("VICREGL_DATA") or Path(__file__).parent / "cache")
