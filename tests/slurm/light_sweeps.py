"""`python light_sweeps.py VERB STUDY ...` is `python -m sweeps VERB STUDY ...` with the stages of light_stages.py."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    import no_torch  # noqa: F401

import light_stages

from runtime.errors import run_command
from sweeps import stages

SCRIPT = str(Path(__file__).with_name("light_stages.py"))


def light_registry() -> dict[str, stages.Stage]:
    """As `sweeps.stages.STAGES`; the two functions `identity` need a module each."""
    for name, config, identity in (
        ("light_pretrain", light_stages.LightPretrainConfig, light_stages.pretrain_identity),
        ("light_eval", light_stages.LightEvalConfig, light_stages.eval_identity),
    ):
        sys.modules[name] = type(sys)(name)
        sys.modules[name].__dict__.update(Config=config, identity=identity)
    return {
        "pretrain": stages.Stage("pretrain", "light_pretrain", "Config", (SCRIPT, "pretrain"), light_stages.work_of),
        "linear": stages.Stage("linear", "light_eval", "Config", (SCRIPT, "linear")),
    }


if __name__ == "__main__":
    stages.STAGES.clear()
    stages.STAGES.update(light_registry())
    from sweeps import __main__ as command

    run_command(command.main)
