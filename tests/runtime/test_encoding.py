"""Files and the output of programs are UTF-8 in any locale."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vicregl", "data", "pretrain", "eval", "sweeps", "analysis", "runtime", "benchmarks")
LOCALES = {"ascii": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}, "utf-8": {"PYTHONUTF8": "1"}}


def text_without_encoding(source):
    """(line, call) of each call that reads or writes text in the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and not {"encoding", None} & {keyword.arg for keyword in node.keywords}:
            called = ast.unparse(node.func)
            if opens_text(called, node) or asks_for_text(node):
                yield node.lineno, ast.unparse(node)


def opens_text(called, node):
    owner, _, name = called.rpartition(".")
    if name in ("read_text", "write_text"):
        return owner and owner != "files"  # runtime/files.py: its own write_text
    modes = [argument.value for argument in [*node.args, *(k.value for k in node.keywords)] if is_text(argument)]
    if owner in ("Image", "PIL.Image") or (owner, name) == ("os", "open"):
        return False
    if name in ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"):
        return any("b" not in mode for mode in modes)
    by_name = called in ("open", "io.open", "os.fdopen", "gzip.open")
    by_method = name == "open" and (not node.args or bool(modes))
    return (by_name or by_method) and not any("b" in mode for mode in modes if set(mode) <= set("rwxabt+"))


def is_text(argument):
    return isinstance(argument, ast.Constant) and isinstance(argument.value, str)


def asks_for_text(node):
    return bool({"text", "universal_newlines"} & {keyword.arg for keyword in node.keywords if keyword.arg})


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(path)", True),
        ("open(path, 'w', newline='')", True),
        ("open(path, mode='a')", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('wb')", False),
        ("(folder / 'a').read_text()", True),
        ("files.write_text(path, text)", False),
        ("Image.open(path)", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("os.fdopen(handle, 'w')", True),
        ("subprocess.run(argv, text=True)", True),
        ("subprocess.run(argv, encoding='utf-8')", False),
        ("NamedTemporaryFile('w')", True),
        ("NamedTemporaryFile()", False),
    ],
)
def test_the_scan_sees_what_depends_on_the_locale(source, found):
    assert bool(list(text_without_encoding(source))) == found


def test_every_file_is_read_and_written_with_its_encoding_said():
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 100
    wrong = [(str(path), *call) for path in sources for call in text_without_encoding(path.read_text(encoding="utf-8"))]
    assert not wrong


@pytest.fixture(params=LOCALES)
def script(request, tmp_path):
    """Run the text of a script in a locale."""

    def run(text, *arguments, code=0):
        (tmp_path / "script.py").write_text(text, encoding="utf-8")  # `-c` is decoded by the locale
        argv = [sys.executable, tmp_path / "script.py", *map(str, arguments)]
        environment = os.environ | LOCALES[request.param] | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_a_command_prints_any_text_in_any_locale(script):
    printed = script("from runtime.errors import run_command; run_command(lambda argv: print('α ± 1'))")
    assert printed == "α ± 1\n"


def test_files_are_written_and_read_alike_in_any_locale(script, tmp_path):
    text = (
        "import sys; from pathlib import Path; from runtime import files; path = Path(sys.argv[1])\n"
        "files.write_text(path, 'α ± 1 ' + sys.argv[2])\n"
        "files.write_text(path.with_suffix('.jsonl'), '{\"a\": \"é\"}')\n"
        "print(ascii(list(files.read_json_lines(path.with_suffix('.jsonl')))))"
    )
    assert script(text, tmp_path / "öut", "é") == "[{'a': '\\xe9'}]\n"
    assert (tmp_path / "öut").read_text(encoding="utf-8") == "α ± 1 é"


def test_a_study_whose_words_are_not_ascii_is_planned_in_any_locale(script, tmp_path):
    study = (ROOT / "sweeps/studies/quickstart.yaml").read_text(encoding="utf-8")
    (tmp_path / "study.yaml").write_text(
        study.replace("linear", "linéaire")
        .replace("stage: linéaire", "stage: linear")
        .replace("linéaire_scenes", "linear_scenes"),
        encoding="utf-8",
    )
    text = "from runtime.errors import run_command; from sweeps.__main__ import main; run_command(main)"
    assert "linéaire" in script(text, "plan", tmp_path / "study.yaml", f"machine.runs={tmp_path}")


def test_a_path_that_the_locale_cannot_read_is_one_line_or_works(script, tmp_path, request):
    folder = tmp_path / "été"
    folder.mkdir()
    (folder / "study.yaml").write_bytes((ROOT / "sweeps/studies/quickstart.yaml").read_bytes())
    text = "from runtime.errors import run_command; from sweeps.__main__ import main; run_command(main)"
    ascii_locale = "ascii" in request.node.name
    printed = script(text, "plan", folder / "study.yaml", f"machine.runs={tmp_path}", code=2 if ascii_locale else 0)
    assert ("use a locale of UTF-8" in printed and printed.count("\n") == 1) == ascii_locale, printed
