"""Checkpoint files that cannot be read: what raises, and what to say."""

from __future__ import annotations

import pickle
from pathlib import Path

from runtime.errors import UserError

# What torch.load and load_state_dict raise for a file that is cut off, or holds something else.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
)


def unreadable(path: str | Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read: it is cut off or not a checkpoint of this run ({type(error).__name__}). "
        "Delete it to start this run over, or put a good copy in its place"
    )
