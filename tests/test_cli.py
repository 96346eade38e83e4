"""The ps3 command as a user types it: output, exit codes, and files that are whole or not there."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import ps3_sdk
from conftest import ROOT
from ps3_sdk import cli


PANEL = ROOT / "examples/frames/panel_4k.jpg"


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_ask_ends_with_what_and_where(capsys, seeded, photo_path, tmp_path):
    picture = tmp_path / "seen.jpg"
    code, out, _ = run(capsys, "ask", photo_path, "the name plate", "--bundle", seeded, "--tokens", 200, "--overlay", picture)
    last = out.strip().splitlines()[-1]
    assert code == 0 and picture.stat().st_size > 100_000
    assert "the name plate" in last and "prob" in last and str(picture) in last


def test_ask_json_is_one_document_and_complete(capsys, seeded, photo_path):
    code, out, _ = run(capsys, "ask", photo_path, "a boat", "--bundle", seeded, "--tokens", 64, "--choices", "red", "blue", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["prompt"] == "a boat" and answer["frame_size"] == [2160, 3840]
    assert {choice["text"] for choice in answer["choices"]} == {"red", "blue"}
    assert set(answer["picked"]) == {"756", "1512", "3780"} and np.shape(answer["prob"]) == (27, 27)


def test_ask_reads_a_picture_from_stdin(photo_path, tmp_path):
    result = subprocess.run([sys.executable, "-m", "ps3_sdk", "ask", "-", "a boat", "--tokens", "16"], input=photo_path.read_bytes(), capture_output=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr.decode()
    assert b"3840x2160" in result.stdout


def test_encode_writes_the_promised_arrays(capsys, seeded, photo_path, tmp_path):
    target = tmp_path / "f.npz"
    code, out, _ = run(capsys, "encode", photo_path, "--bundle", seeded, "--prompt", "a boat", "--tokens", 300, "-o", target)
    arrays = np.load(target)
    grids = {756: 54, 1512: 108, 3780: 270}
    assert code == 0 and set(arrays.files) == {"tokens"} | {f"{kind}_{px}" for kind in ("prob", "picked") for px in grids}
    assert arrays["tokens"].dtype == np.float32 and arrays["tokens"].shape[0] == 729 + sum(len(arrays[f"picked_{px}"]) for px in grids)
    for px, n in grids.items():
        assert arrays[f"prob_{px}"].shape == (n, n) and arrays[f"picked_{px}"].dtype == np.int32
    assert str(target) in out


def test_encode_takes_a_prompt_embedding(capsys, seeded, photo_path, tmp_path):
    np.save(tmp_path / "v.npy", np.ones(48, np.float32))
    assert run(capsys, "encode", photo_path, "--bundle", seeded, "--prompt-embedding", tmp_path / "v.npy", "--tokens", 8, "-o", tmp_path / "f.npz")[0] == 0
    (tmp_path / "v.npy").write_bytes(b"no array")
    code, _, err = run(capsys, "encode", photo_path, "--prompt-embedding", tmp_path / "v.npy", "-o", tmp_path / "g.npz")
    assert code == 1 and "v.npy" in err and not (tmp_path / "g.npz").exists()


def test_a_full_disk_leaves_the_old_file(capsys, photo_path, tmp_path, monkeypatch):
    target = tmp_path / "f.npz"
    target.write_bytes(b"old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez", full)
    code, _, err = run(capsys, "encode", photo_path, "--tokens", 8, "-o", target)
    assert code == 1 and "No space left" in err and target.read_bytes() == b"old" and os.listdir(tmp_path) == ["f.npz"]


@pytest.mark.parametrize("arguments, says", [
    (["ask", "missing.jpg", "a boat"], "missing.jpg"),
    (["info", "missing.plan"], "missing.plan"),
    (["ask", "PHOTO", "a boat", "--bundle", "PHOTO"], "bundle"),
    (["ask", "PHOTO", "a boat", "--tokens", "-3"], "tokens is -3"),
    (["ask", "PHOTO", "a boat", "--tokens", "8", "--overlay", "no/such/folder/x.jpg"], "no/such/folder"),
    (["encode", "PHOTO", "--tokens", "8", "-o", "no/such/folder/x.npz"], "no/such/folder"),
    (["ask", "PHOTO", "a boat", "--tokens", "8", "--overlay", "x.xyz"], "known are"),
    (["verify", "missing.plan", "-o", "no/such/folder/x.json"], "no/such/folder"),
])
def test_errors_are_one_line_and_exit_1(capsys, photo_path, arguments, says):
    code, out, err = run(capsys, *[photo_path if argument == "PHOTO" else argument for argument in arguments])
    assert code == 1 and says in err and err.startswith("ps3: [") and "Traceback" not in err and not out


def test_info_is_a_data_sheet(capsys, seeded):
    code, out, _ = run(capsys, "info", seeded)
    assert code == 0
    for word in ("encode", "score_features", "encode_prompt", "3780", "random", "sha256"):
        assert word in out
    code, out, _ = run(capsys, "info", seeded, "--json")
    assert json.loads(out)["format"] == "ps3-bundle"


def test_bench_and_doctor_print_what_they_promise(capsys):
    code, out, _ = run(capsys, "bench", "--runs", 2, "--tokens", 64, "--json")
    result = json.loads(out)
    assert code == 0 and result["runs"] == 2 and {"p50", "p95", "p99"} == set(result["ms"]["ask"])
    code, out, _ = run(capsys, "doctor")
    assert code == 0 and "all is well" in out and "onnxruntime" in out


def test_doctor_says_what_is_missing(capsys, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, out, _ = run(capsys, "doctor")
    assert code == 1 and "bundle      FAILED" in out and "pip install tokenizers" in out


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no archive"])
def test_a_file_that_is_no_vector_is_named(capsys, tmp_path, data):
    (tmp_path / "v.npy").write_bytes(data)
    code, _, err = run(capsys, "encode", PANEL, "--prompt-embedding", tmp_path / "v.npy", "-o", tmp_path / "o.npz")
    assert code == 1 and "v.npy cannot be read as a vector" in err


def test_halves_of_characters_are_refused_or_mended(capsys, seeded):
    """As the command line makes of bytes that are not UTF-8. A text tower's prompt is cleaned first, as the public model's, which mends them."""
    code, _, err = run(capsys, "ask", PANEL, "caf\udce9")
    assert code == 1 and "half of a character" in err
    assert run(capsys, "ask", PANEL, "caf\udce9", "--bundle", seeded, "--tokens", 8)[0] == 0


def test_where_and_how_much_to_look_can_be_said(capsys):
    code, out, _ = run(capsys, "ask", PANEL, "what is on the blue gauge?", "--top-down", "--scales", 2, "--looks", 1, "--json")
    picked = json.loads(out)["picked"]
    assert code == 0 and picked["756"] and picked["1512"] and not picked.get("3780")


def test_the_build_for_gpus_is_onnx_runtime_too(monkeypatch):
    """Installed in place of the other, as it must be, it is no missing package, and installing that would undo it."""
    import importlib.metadata
    from ps3_sdk import measure
    from ps3_sdk.evaluate.run import versions
    real = importlib.metadata.version

    def version(name):
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.99" if name == "onnxruntime-gpu" else real(name)
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions()["onnxruntime"] == "1.99" and measure.version_of("nothing-of-that-name") is None
    lines, _ = measure.doctor()
    assert any(line.startswith("onnxruntime ") and "1.99" in line for line in lines) and not any("MISSING" in line and "onnxruntime" in line for line in lines)


def test_a_closed_pipe_is_no_traceback(tmp_path):
    result = subprocess.run(f"{sys.executable} -m ps3_sdk info --json | head -1", shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" not in result.stderr


def test_the_version_and_the_word_default(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.strip() == f"ps3_sdk {ps3_sdk.__version__}"
    assert cli.main(["info", "default"]) == 0
    sheet = capsys.readouterr().out
    assert cli.main(["info"]) == 0 and capsys.readouterr().out == sheet and "ps3-nano" in sheet
    assert cli.main(["verify", "default"]) == 1 and "holds no reference values" in capsys.readouterr().err


def test_arrays_are_named_npz(capsys, seeded, photo_path, tmp_path):
    assert cli.main(["encode", str(photo_path), "--bundle", str(seeded), "-o", str(tmp_path / "e.npy")]) == 1
    assert "a name that ends in .npz is needed" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_output_to_a_full_disk_is_no_traceback(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "ps3_sdk", "info"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "no space left" in done.stderr and "Traceback" not in done.stderr


def test_what_is_said_of_int8_can_be_done():
    from ps3_sdk.datasheet import int8_caution
    measured = {"encode_low": {"max_relative_error": 0.07, "against": "torch", "inputs": "729 random patches"}}
    encoder = {"networks": {"encode": {"precision": "int8"}}, "parity": measured, "model": {"weights": "trained"}}
    assert "export with --check-frame FRAME" in int8_caution(encoder)
    words = int8_caution({**encoder, "language": {"width": 8}})
    assert "7.0e-02" in words and "729 random patches" in words and "--check-frame" not in words, "which is refused for those"
