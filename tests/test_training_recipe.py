"""ps3 train: its steps as commands, what is refused before any of them, and how it is stopped."""
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ps3_sdk[export]'")

from ps3_sdk import cli
from ps3_sdk.training import machine, nano, recipe


def test_the_whole_recipe_is_one_command_whose_steps_take_their_options(tmp_path, monkeypatch, capsys):
    assert cli.main(["train", str(tmp_path / "run"), "--processes", "2", "--share", "0.01", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    said = [shlex.split(line)[2:] for line in out.splitlines()]
    assert not err and out.count("\npython -m ") == len(said) - 1, "lines that a shell takes, and nothing else"
    assert [line[0].rsplit(".", 1)[1] for line in said] == ["pool", "pool", "read", "answer", "places", "answer", "answer", "answer", "confidence", "curves"] and not (tmp_path / "run").exists()
    taken = []
    monkeypatch.setattr(machine, "launch", lambda work, options: taken.append(options))
    monkeypatch.setattr(nano, "write_folder", lambda *arguments, **options: None)
    for name, *arguments in said:
        stage = importlib.import_module(name)
        if name.endswith(("read", "answer")):
            monkeypatch.setattr("sys.argv", [name, *arguments])
            stage.main()
    assert [options.steps for options in taken] == [32, 16, 4, 16, 9] and all(options.processes == 2 and options.device == "cpu" for options in taken)
    assert taken[4].stage == "score" and taken[4].small and taken[4].begin is None and taken[3].places == 4 and taken[2].still and Path(taken[2].begin) == tmp_path / "run/placed"
    assert cli.main(["train", str(tmp_path / "run"), "--device", "cuda", "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-4]
    assert all(said in last for said in ("training.answer", "--scenes 20", "--processes 1 ", "--device cuda"))


def test_training_on_from_a_folder_is_the_last_stages_alone(tmp_path, capsys):
    assert cli.main(["train", str(tmp_path), "--begin", str(ROOT / "training/model"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "training.read" not in said and "look" not in said.replace("--looks", "") and f"--begin {ROOT / 'training/model'}" in said
    answer = next(line for line in said.splitlines() if f"{tmp_path} answer " in line)      # as the embedded model was trained on: high rates lose what it reads
    assert all(f" {option} " in f"{answer} " for option in ("--small", "--lr 0.2", "--decay-from 0.02", "--windows 32", "--spelt 96", "--scenes 2", "--looks 4", "--questions 16", "--mean-over 150"))
    assert cli.main(["train", str(tmp_path), "--begin", str(tmp_path / "none")]) == 1 and "no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--device", "tpu"), ("--frames", "-3"), ("--share", "0"), ("--share", "nan"), ("--processes", "0")])
def test_a_recipe_of_nothing_is_refused_before_any_step(tmp_path, capsys, wrong):
    assert cli.main(["train", str(tmp_path / "run"), "--dry-run", *wrong]) == 1
    out, said = capsys.readouterr()
    assert said.startswith("ps3: [train] ") and " ".join(wrong) in said and not out


def test_a_step_that_fails_ends_the_recipe_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "commands", lambda options: [["ps3_sdk.training.curves", str(tmp_path)], ["ps3_sdk.training.curves", "--never"]])
    assert cli.main(["train", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "curves ended with 2" in said and "run the same command again" in said and "--never" not in said


@pytest.mark.parametrize("missing, extra", [(["torch"], "export"), (["torch", "safetensors", "matplotlib"], "export,eval"), (["matplotlib"], "eval")])
def test_what_is_not_installed_is_said_before_any_step(tmp_path, monkeypatch, capsys, missing, extra):
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(recipe, "run", lambda command: pytest.fail("no step is tried"))
    assert cli.main(["train", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"ps3: [train] {', '.join(missing)} not installed") and f"pip install 'ps3_sdk[{extra}]'" in said and len(said.splitlines()) == 1
    assert cli.main(["train", str(tmp_path / "run"), "--dry-run"]) == 0, "what would be done can be said"


def test_a_small_share_measures_confidence_on_few_scenes(tmp_path, capsys):
    found = []
    for share in ("0.003", "0.1", "1", "3"):
        assert cli.main(["train", str(tmp_path), "--share", share, "--dry-run"]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if ".confidence " in line)
        found.append(int(shlex.split(line)[-1]))
    assert found == [recipe.FEWEST, 24, 240, 240]


def test_a_folder_with_spaces_is_one_word_and_defaults_are_told(tmp_path, capsys):
    run = tmp_path / "two words"
    assert cli.main(["train", str(run), "--dry-run"]) == 0
    assert all(str(run) in shlex.split(line) or f"{run}/pool" in shlex.split(line) or f"{run}/model" in shlex.split(line) for line in capsys.readouterr().out.splitlines())
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert "(default: 360)" in " ".join(capsys.readouterr().out.split())


ENDLESS = """
import time
from types import SimpleNamespace
from ps3_sdk.training import machine


def work(options, rank):
    from ps3_sdk.training.frames import Ring
    if rank:
        machine.agreed(0.0)         # waits for the first process, inside of gloo
    ring = Ring("train", 0, size=3, workers=1, frame_px=(540, 960), fallback=True)
    try:
        ring.next()
        print("trains", flush=True)
        time.sleep(600)
    finally:
        ring.close()


def main():
    machine.launch(work, SimpleNamespace(processes=2))


if __name__ == "__main__":
    machine.command(main)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_ends_quietly_with_all_its_processes(tmp_path, how):
    (tmp_path / "endless.py").write_text(ENDLESS)
    code = "import sys; from ps3_sdk import cli; from ps3_sdk.training import recipe; recipe.commands = lambda options: [['endless']]; sys.exit(cli.main(['train', 'run']))"
    train = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))       # it is ignored where these tests run in the background
    try:
        assert train.stdout.readline() == "trains\n"
        if how == signal.SIGINT:
            os.killpg(train.pid, how)           # as a terminal does
        else:
            train.send_signal(how)
        out, err = train.communicate(timeout=90)
        with pytest.raises(ProcessLookupError):
            for _ in range(100):            # the last orphans may wait to be taken note of
                os.killpg(train.pid, 0)
                time.sleep(0.1)
    finally:
        if train.returncode is None:
            os.killpg(train.pid, signal.SIGKILL)
            train.wait()
    lines = err.splitlines()
    assert train.returncode == 128 + how and not out
    assert "python -m endless" in lines[0] and "stopping this step" in lines[1] and lines[2:] == (["ps3: interrupted; nothing half-written was left behind"] if how == signal.SIGINT else []), err


def test_a_pool_that_is_stopped_leaves_whole_frames(tmp_path, monkeypatch):
    from ps3_sdk.training import pool
    (tmp_path / "dense_val").mkdir()
    (tmp_path / "dense_val/00001.labels.npy.new").write_bytes(b"half")
    monkeypatch.setattr("sys.argv", ["pool", str(tmp_path), "--split", "val", "--frames", "400", "--workers", "1"])
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))       # after the first frame
    with pytest.raises(KeyboardInterrupt):
        pool.main()
    made = {path.name.split(".", 1)[1] for path in (tmp_path / "dense_val").iterdir()}
    assert made <= {f"{name}.npy" for name in ("patches", "heights", "words", "orders", "labels")} and (tmp_path / "dense_val/00000.labels.npy").exists()
    assert len(list((tmp_path / "dense_val").glob("*.labels.npy"))) < 10


def test_what_is_raised_on_purpose_is_one_line(capsys):
    from ps3_sdk.errors import InputError

    def fail():
        raise InputError("[training] got this; that is needed.")
    with pytest.raises(SystemExit) as ended:
        machine.command(fail)
    assert ended.value.code == "[training] got this; that is needed."
