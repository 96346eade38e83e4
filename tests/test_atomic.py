"""Files are written beside their place and renamed: what lies there and is no file, as a device or a pipe, is never replaced by one."""
import os
import socket
import stat

import pytest

from ps3_sdk import cli
from ps3_sdk.atomic import check_place, replaced
from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.evaluate import command


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    yield path
    assert stat.S_ISFIFO(os.lstat(path).st_mode) and not list(tmp_path.glob(".*")), "it is still what it was, and nothing lies beside it"


def test_what_is_no_file_is_not_replaced(pipe, tmp_path):
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", str(pipe)):
        with pytest.raises(ExportError, match=r"\[here\] .* is a device, pipe or socket; what is written is one file"):
            check_place(path, "here", ExportError)
        with pytest.raises(OSError, match="it is a device, pipe or socket"), replaced(path):
            pytest.fail("refused before anything is written")
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(OSError, match="it is a folder"), replaced(tmp_path):
        pytest.fail("refused before anything is written")


def test_a_socket_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)         # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(InputError, match="pipe or socket"):
            check_place("s", "here")


def test_files_links_and_places_that_are_free_are_written(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path / "link", tmp_path / "file"):
        check_place(path, "here")
        with replaced(path) as beside, open(beside, "w") as file:
            file.write("x")
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "file").is_symlink() and (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("arguments", [["encode", "no.jpg", "-o"], ["verify", "no.plan", "-o"], ["export", "no", "-o"], ["build", "default", "--runtime", "onnx", "-o"],
                                       ["ask", "no.jpg", "a boat", "--overlay"]])
def test_commands_refuse_before_they_begin(capsys, pipe, arguments):
    if arguments[0] in ("export", "build"):
        pytest.importorskip("torch", reason="needs ps3_sdk[export]")
    assert cli.main([*arguments, str(pipe)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ps3: [") and "pipe.png is a device, pipe or socket" in err and "Traceback" not in err


def test_a_summary_that_cannot_be_written_is_said_in_words(pipe):
    with pytest.raises(InputError, match=r"\[evaluate\] .*pipe.png cannot be written: it is a device, pipe or socket"):
        command._write(pipe, "{}")
