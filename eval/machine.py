"""What of an evaluation's config cannot change its result."""

from __future__ import annotations

from runtime.config import MachineConfig, require


class EvalMachineConfig(MachineConfig):
    save_seconds: float = 60.0  # between two checkpoints

    def check(self) -> None:
        super().check()
        require(self.save_seconds >= 0, "machine.save_seconds", self.save_seconds, "0 (as often as can be) or more")
