"""Every example runs as its first lines say."""
import re
import signal
import subprocess
import sys

import pytest

import ps3_sdk
from conftest import ROOT

CASES = {"first_answer.py": ([], "drawn: first_answer.jpg"), "camera_loop.py": (["--seconds", "1.5"], "age of a frame"),
         "own_model.py": (["-o", "kept.plan"], "answer   ")}


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
    if name == "own_model.py":
        assert "kept: kept.plan" in result.stdout
        with ps3_sdk.Session(tmp_path / "kept.plan") as session:
            assert session.language is None
    if name == "first_answer.py":
        took, more, low = map(int, re.search(r"took +(\d+) ms.*asked in (\d+) ms more, the low-res pass took (\d+) ms", result.stdout, re.S).groups())
        assert more < took and result.stdout.count("encode_low") == 1, "what the first question paid for is not told again"


def test_a_camera_loop_is_ended_from_the_keyboard_and_sums_up(tmp_path):
    loop = subprocess.Popen([sys.executable, str(ROOT / "examples/camera_loop.py"), "--seconds", "inf"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))       # it is ignored where these tests run in the background
    try:
        first = loop.stdout.readline()
        loop.send_signal(signal.SIGINT)
        out, err = loop.communicate(timeout=60)
    finally:
        loop.kill()
    assert loop.returncode == 0 and not err, err
    assert "confidence" in first and "prob" not in first
    frames, asked, skipped = map(int, re.search(r"(\d+) frames, (\d+) asked about, (\d+) skipped", out).groups())
    assert asked >= 1 and 0 <= frames - asked - skipped <= 2 and "age of a frame when it is answered" in out and "encode_low" in out
