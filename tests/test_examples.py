"""Every example runs as its first lines say."""
import subprocess
import sys

import pytest

from conftest import ROOT

CASES = {"first_answer.py": ([], "drawn: first_answer.jpg"), "camera_loop.py": (["--seconds", "1.5"], "age of a frame"),
         "own_model.py": ([], "answer   ")}


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_example(name, tmp_path):
    if name == "own_model.py":
        pytest.importorskip("torch", reason="needs ps3_sdk[export]")
    arguments, says = CASES[name]
    result = subprocess.run([sys.executable, str(ROOT / "examples" / name), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert says in result.stdout
