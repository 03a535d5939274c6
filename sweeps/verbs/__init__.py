"""The verbs of `python -m sweeps`, one module each: HELP, add_options(parser), main(request) -> exit code.

request.py has what they share.
"""

from __future__ import annotations

from types import ModuleType

from sweeps.verbs import cancel, clean, logs, plan, reconcile, retry, run, status, submit
from sweeps.verbs.request import Request

VERBS: dict[str, ModuleType] = {
    "plan": plan,
    "run": run,
    "submit": submit,
    "status": status,
    "logs": logs,
    "retry": retry,
    "reconcile": reconcile,
    "cancel": cancel,
    "clean": clean,
}

__all__ = ["VERBS", "Request"]
