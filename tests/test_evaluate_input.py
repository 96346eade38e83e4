"""ps3 eval and hostile or unlucky sets: what cannot be asked is told and the rest is asked, names are whole, mixed sets are told apart."""
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from ps3_sdk import cli
from ps3_sdk.errors import InputError
from ps3_sdk.evaluate import Item, evaluate, plots, read_questions, read_vstar
from ps3_sdk.evaluate.items import ItemList
from ps3_sdk.evaluate.progress import Bar
from ps3_sdk.evaluate.summary import summarise, table
from ps3_sdk.evaluate.words import chosen
from test_evaluate import GOOD, folder, record, vstar, write  # noqa: F401  (fixtures)

CHOICE = {**GOOD, "choices": ["41", "42"]}


def test_free_answers_and_choices_of_one_set_are_both_told(tmp_path):
    summary = {"set": "q", "bundle": {"name": "b", "hash": "h"}, "machine": "m", "notes": [],
               **summarise([record(right=False, domain="signs"), record(choices=["A", "B"], domain=""), record(choices=["A", "B"], domain="all")])}
    assert set(summary["by_domain"]) == {"signs", "all"}, "what has no domain is in the whole alone"
    lines = [line.split() for line in table(summary).splitlines()]
    rows = [line[:3] for line in lines if line and line[0] in ("all", "signs")]
    assert rows == [["all", "1", "0.0"], ["signs", "1", "0.0"], ["all", "2", "100.0"], ["all", "1", "100.0"]]
    pytest.importorskip("matplotlib", reason="needs ps3_sdk[eval]")
    plots.plot(summary, tmp_path / "s.png")
    bars = []
    original = plots._bars
    try:
        plots._bars = lambda axes, rows, names, title: bars.append((title, list(names))) or original(axes, rows, names, title)
        plots.plot(summary, tmp_path / "s.png")
    finally:
        plots._bars = original
    assert bars[0] == ("exact match and choice accuracy by domain", ["exact_match", "exact_match_low_res_only", "choice_accuracy", "choice_accuracy_low_res_only"])


def test_a_picture_that_breaks_off_stops_nothing(session, folder):
    Image.open(folder / "a.png").resize((640, 360)).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(data[:len(data) // 2])          # its head, which is looked at first, is whole
    path = write(folder / "q.jsonl", CHOICE, {**CHOICE, "frame": "broken.jpg"}, CHOICE)
    summary = evaluate(session, read_questions(path), tokens=8, folder=folder / "out")
    assert summary["n"] == 2 and [each["key"] for each in summary["failed"]] == ["line 2"] and "line 2" in summary["failed"][0]["why"]
    assert "1 of 3 questions could not be asked" in summary["notes"][-1] and "could not be asked" in table(summary)
    again = evaluate(session, read_questions(path), tokens=8, folder=folder / "out")
    assert [each["key"] for each in again["failed"]] == ["line 2"], "it is tried again"
    assert evaluate(session, read_questions(write(folder / "p.jsonl", {**CHOICE, "frame": "broken.jpg"}, CHOICE)), tokens=8)["n"] == 1
    with pytest.raises(InputError, match="line 2"):         # so it is with all of them
        evaluate(session, read_questions(write(folder / "p.jsonl", *[{**CHOICE, "frame": "broken.jpg"}] * 2)), tokens=8)
    tried = []
    with pytest.raises(InputError, match="tokens"):
        evaluate(session, read_questions(write(folder / "p.jsonl", *[CHOICE] * 30)), tokens=-1, progress=lambda done, *_: tried.append(done))
    assert tried == list(range(1, 10)), "the rest is not tried"


def test_a_full_disk_is_no_bad_question(session, folder, monkeypatch):
    from ps3_sdk.evaluate.results import Results
    monkeypatch.setattr(Results, "add", lambda self, record: (_ for _ in ()).throw(InputError("[evaluate] cannot be written. Make room")))
    with pytest.raises(InputError, match="Make room"):
        evaluate(session, read_questions(write(folder / "q.jsonl", CHOICE, CHOICE)), tokens=8, folder=folder / "out")


def test_two_items_of_one_key_are_refused(session, folder):
    item = Item("k", "[evaluate] here", lambda: folder / "a.png", "x", "42", ("41", "42"))
    with pytest.raises(InputError, match="here: the key 'k'"):
        evaluate(session, ItemList([item, item], "two", {}), tokens=8)


def test_an_empty_prompt_of_an_encoder_is_asked_by_saliency(session, folder):
    summary = evaluate(session, read_questions(write(folder / "q.jsonl", CHOICE, {**CHOICE, "prompt": ""})), tokens=8, selection="top_down")
    assert summary["n"] == 2 and not summary["failed"]


def test_results_inside_a_folder_of_questions_are_no_questions(vstar, monkeypatch):
    before = read_vstar(vstar)
    (vstar / "out").mkdir()
    (vstar / "out/summary.json").write_text('{"set": "bench", "settings_hash": "00", "n": 4}')
    Image.new("RGB", (8, 8)).save(vstar / "out/summary.png")
    (vstar / "out/notes.json").write_text('{"by": "me"}')
    (vstar / "x.json").mkdir()
    after = read_vstar(vstar)
    assert [item.key for item in after] == [item.key for item in before] and after.settings == before.settings
    monkeypatch.chdir(vstar)
    assert read_vstar(".").name == vstar.name
    (vstar / "out/lost.json").write_text('{"question": "what?", "options": ["a", "b"]}')
    with pytest.raises(InputError, match="lost.json has no picture"):
        read_vstar(vstar)


def test_domains_of_one_name_in_two_folders_are_two(tmp_path):
    for place in ("day/signs", "night/signs", "."):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "a.png")
        (tmp_path / place / "a.json").write_text('{"question": "what?", "options": ["a", "b"]}')
    assert [item.domain for item in read_vstar(tmp_path)] == ["", "day/signs", "night/signs"]


def test_what_cannot_be_read_of_a_folder_is_named(vstar):
    with pytest.raises(InputError, match="seed is -1"):
        read_vstar(vstar, -1)
    link = vstar / "l.json"
    link.symlink_to(vstar / "nowhere")
    with pytest.raises(InputError, match="l.json cannot be read"):
        read_vstar(vstar)
    link.unlink()
    try:
        (vstar / os.fsdecode(b"\xff.json")).write_text("{}")
    except OSError:
        return                  # a file system of whole characters alone
    with pytest.raises(InputError, match="is not UTF-8"):
        read_vstar(vstar)


@pytest.mark.parametrize("line, says", [
    ({**GOOD, "frame": "a" * 300}, "cannot be looked for"), ({**GOOD, "frame": "loop.png"}, "loop.png"), ({**GOOD, "frame": "\ud800.jpg"}, "of whole characters"),
    ({**GOOD, "prompt": "\ud83d"}, "of whole characters"), ({**GOOD, "answer": "\ud83d"}, "of whole characters"), ({**GOOD, "choices": ["42", "\ud83d"]}, "2 to 26 texts"),
    ({**GOOD, "domain": 5}, "domain is '5'")])
def test_lines_that_cannot_be_are_named(folder, line, says):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    with pytest.raises(InputError) as caught:
        read_questions(write(folder / "q.jsonl", GOOD, line))
    assert "line 2" in str(caught.value) and says in str(caught.value)


def test_no_domain_may_be_said_as_null(folder):
    assert read_questions(write(folder / "q.jsonl", {**GOOD, "domain": None, "box_px": None, "choices": None}))[0].domain == ""


def test_options_that_are_letters_are_named_by_their_letters():
    assert chosen("A", ["C", "A"]) == 0 and chosen("B.", ["C", "A"]) == 1 and chosen("C", ["C", "A"]) == 0
    assert chosen("red", ["red", "A"]) == 0 and chosen("B", ["red", "green"]) == 1


def test_progress_is_a_line_every_tenth_where_no_terminal_is():
    stream = io.StringIO()
    bar = Bar(stream)
    for done in range(1, 241):
        bar(done, 240, "scenes")
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == ["1", *map(str, range(24, 241, 24))] and stream.getvalue().endswith("\n")


def test_what_was_kept_takes_no_time():
    stream = io.StringIO()
    bar = Bar(stream)
    bar._start -= 10            # ten seconds for one question of ten that are left
    bar(91, 100, "")
    assert "about 90 s left" in stream.getvalue()


def test_options_of_scenes_are_refused_elsewhere(vstar, folder, capsys):
    path = str(write(folder / "q.jsonl", GOOD))
    for arguments, says in (([str(vstar), "--questions", "3"], "--questions"), ([path, "--seed", "0"], "--seed"), ([path, "--domains", "ui", "--fallback"], "--domains --fallback")):
        assert cli.main(["eval", *arguments]) == 1 and says + " is of scenes" in capsys.readouterr().err


def test_plots_that_fail_leave_the_figures(seeded, folder, monkeypatch, capsys):
    path = write(folder / "q.jsonl", {**CHOICE, "domain": "$^$"}, CHOICE)
    pytest.importorskip("matplotlib", reason="needs ps3_sdk[eval]")
    command = ["eval", str(path), "--bundle", str(seeded), "--tokens", "8", "-o", str(folder / "out")]
    assert cli.main(command) == 0 and (folder / "out/summary.png").exists()         # a domain is no formula
    capsys.readouterr()
    monkeypatch.setattr(plots, "plot", lambda *_: 1 / 0)
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert "2 questions" in out and "plots could not be drawn: division by zero" in err


def test_sessions_are_opened_as_every_command_opens_them(monkeypatch, folder, capsys):
    """Which tells a licence in one line, not as a warning of Python's (test_cli)."""
    opened = []
    monkeypatch.setattr(cli, "_session", lambda options: opened.append(options) or (_ for _ in ()).throw(InputError("[session] opened")))
    assert cli.main(["eval", str(write(folder / "q.jsonl", GOOD))]) == 1 and opened and "opened" in capsys.readouterr().err


def test_records_are_json_whatever_the_domain(session, folder):
    path = write(folder / "q.jsonl", {**CHOICE, "domain": "Größe 🚦"})
    summary = evaluate(session, read_questions(path), tokens=8, folder=folder / "out")
    assert list(summary["by_domain"]) == ["Größe 🚦"] and json.dumps(summary, allow_nan=False) and np.isfinite(summary["choice_accuracy"])
