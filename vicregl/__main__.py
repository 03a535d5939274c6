"""The command `vicregl`, which starts the commands of the benchmark suite from its checkout (runtime/console.py)."""

import importlib
import sys
from pathlib import Path

ALONE = (
    "error: {folder} is the library alone, and the command `vicregl` needs the benchmark suite around it. Get a "
    "checkout of the suite, and in it run `make install`, or `pip install -e .` into this environment"
)


def main() -> None:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "runtime" / "console.py").is_file():
        print(ALONE.format(folder=checkout / "vicregl"), file=sys.stderr)
        raise SystemExit(2)
    sys.path.insert(0, str(checkout))  # vicregl alone is installed
    importlib.import_module("runtime.console").main()


if __name__ == "__main__":
    main()
