"""ps3 eval, its parts: layouts read and refused, answers compared, intervals, selection recall, results that continue."""
import json

import numpy as np
import pytest
from PIL import Image

from ps3_sdk.errors import InputError
from ps3_sdk.evaluate import read_questions, read_vstar
from ps3_sdk.evaluate.recall import choose, coverage, selection_recall
from ps3_sdk.evaluate.results import Results
from ps3_sdk.evaluate.statistics import share_of, wilson
from ps3_sdk.evaluate.summary import summarise
from ps3_sdk.evaluate.vstar import shuffled
from ps3_sdk.evaluate.words import characters_off, chosen, is_refusal, lettered, normalise


@pytest.fixture
def folder(tmp_path):
    for name, seed in (("a.png", 0), ("sub/b.png", 1)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 160, 3), np.uint8)).save(path)
    return tmp_path


def write(path, *entries):
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries), "utf-8")
    return path


GOOD = {"frame": "a.png", "prompt": "read the sign", "answer": "42"}


# -- answers ---------------------------------------------------------------------------------------------------------

def test_answers_are_stripped_and_upper_case():
    assert normalise("  exit 7b\n") == "EXIT 7B" and normalise(None) == ""
    assert is_refusal("Not visible.") and is_refusal(None) and is_refusal(" ") and not is_refusal("not") and not is_refusal("0")


@pytest.mark.parametrize("said, index", [
    ("B", 1), ("b", 1), ("(b)", 1), ("B. green", 1), ("B: the green one", 1), ("Green", 1), ("green.", 1), ("The light is green", 1), ("C)", 2),
    ("D", None), ("red or green", None), ("greenish", None), ("", None), (None, None), ("A green one", 1),
    ("a blue one", 2), ("B.C.", None)])
def test_an_option_is_found_by_its_text_or_its_letter(said, index):
    assert chosen(said, ("red", "green", "a blue one")) == index


def test_options_are_lettered_in_the_order_shown():
    assert lettered("Which?", ("x", "y")).splitlines()[:3] == ["Which?", "A. x", "B. y"]


# -- statistics ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("right, n, low, high", [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962),
                                                 (1, 1, 0.2065, 1.0), (95, 100, 0.8882, 0.9785)])
def test_wilson_intervals(right, n, low, high):
    assert wilson(right / n, n) == pytest.approx((low, high), abs=6e-5)


def test_no_questions_give_no_share():
    assert share_of([]) == {"share": None, "interval": None, "n": 0} and wilson(0, 0) == (0, 1)
    assert share_of([True, False]) == {"share": 0.5, "interval": [pytest.approx(0.094531, abs=1e-6), pytest.approx(0.905469, abs=1e-6)], "n": 2}


def record(**changed):
    return {"key": "k", "domain": "ui", "kind": "value", "prompt": "p", "answer": "A", "choices": [], "said": "A", "right": True, "right_low_res_only": False,
            "refused": False, "confidence": 0.9, "cap_px": 12.0, "patches": 100, "looked_again": False, "recall": {"256": 0.5}, "recall_bottom_up": {"256": 0.1}, "seen": 1.0, "seconds": 1.0, "first": False, **changed}


def test_figures_are_told_by_domain_by_height_and_apart_from_what_is_not_there():
    found = summarise([record(), record(domain="driving", right=False, cap_px=13.99), record(cap_px=14.0, choices=["A", "B"], first=True, seconds=9.0),
                       record(kind="absent kind", recall=None), record(kind="absent kind", refused=True), record(kind="blank frame", confidence=0.8)])
    assert (found["exact_match"], found["exact_match_n"], found["n"]) == (0.5, 2, 3)
    assert found["exact_match_low_res_only"] == 0 and found["choice_accuracy"] == 1 and found["wrong_but_confident"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["by_domain"]["driving"]["exact_match"] == 0 and set(found["by_domain"]["driving"]) <= set(found)
    assert {band: row["n"] for band, row in found["by_cap_px"].items()} == {"10-13": 2, "14-18": 1, "19-23": 0, "24-28": 0}
    assert found["selection_recall"] == {"256": 0.5} and found["seconds_per_question"] == {"median": 1.0, "p95": 1.0, "n": 5, "first": 9.0}
    absent = found["unanswerable"]
    assert (absent["n"], absent["answered"], absent["answered_confidently"]) == (3, pytest.approx(2 / 3, abs=1e-6), pytest.approx(1 / 3, abs=1e-6))
    assert absent["by_kind"]["blank frame"]["answered_confidently"] == 0, "0.8 is not above 0.8"


def test_what_was_not_seen_is_told_from_what_was_not_read():
    found = summarise([record(), record(right=False), record(seen=0.5), record(seen=0.0, right=False), record(seen=None), record(seen=1.0, right=False, refused=True)])
    assert {name: (row["right"], row["right_n"]) for name, row in found["by_seen"].items()} == {"not at all": (0, 1), "in part": (1, 1), "whole": (pytest.approx(1 / 3, abs=1e-6), 3)}
    assert [row["refused"] for row in found["by_seen"].values()] == [0, 0, pytest.approx(1 / 3, abs=1e-6)]


def test_answers_without_confidence_count_neither_way():
    found = summarise([record(confidence=None), record(kind="absent kind", confidence=None)])
    assert found["wrong_but_confident"] is None and found["unanswerable"]["answered_confidently"] is None and found["unanswerable"]["answered"] == 1


def test_near_misses_and_confidence_are_told():
    found = summarise([record(answer="HANDCAR", said="HANDCAR", confidence=0.1), record(answer="687", said="687 ", right=False, refused=True, confidence=0.8),
                       record(answer="POTBELLY", said="potbly", right=False, confidence=0.79), record(answer="687", said="88", right=False, confidence=0.2),
                       record(answer="RESONANT", said="ESONAN", right=False, confidence=None), record(answer="ORDINAL", said="77", right=False)])
    assert found["nearly_right"] == 0.5 and found["nearly_right_n"] == 6
    assert summarise([record(answer="7", said="72", right=False), record(answer="7", said="1", right=False)])["nearly_right"] == 0, "nothing of it was read"
    assert {name: (row["right"], row["right_n"]) for name, row in found["by_confidence"].items()} == {"below 0.2": (1, 1), "0.2-0.5": (0, 1), "0.5-0.8": (0, 1), "0.8 and more": (0, 2)}


@pytest.mark.parametrize("said,right,off", [("", "", 0), (None, "AB", 2), ("ab ", "AB", 0), ("HANDIELY", "HANDCAR", 4), ("7/200", "71/200", 1), ("BA", "AB", 2)])
def test_characters_off(said, right, off):
    assert characters_off(said, right) == characters_off(right, said) == off


# -- selection -------------------------------------------------------------------------------------------------------

def test_coverage_is_the_share_of_the_area():
    assert coverage((0, 0, 10, 10), np.array([0]), 2, (20, 20)) == 1
    assert coverage((5, 5, 15, 15), np.array([0, 3]), 2, (20, 20)) == pytest.approx(0.5)
    assert coverage((0, 0, 40, 10), np.array([1]), 2, (20, 40)) == pytest.approx(0.5), "cells follow the frame's sides"
    assert coverage((-10, 0, 10, 10), np.array([0]), 2, (20, 20)) == 1, "what is outside the frame cannot be seen"
    assert coverage((50, 50, 60, 60), np.array([0]), 2, (20, 20)) == 0 and coverage((0, 0, 5, 5), np.empty(0, np.int32), 2, (20, 20)) == 0


@pytest.mark.parametrize("tokens", [0, 100, 700, 3000])
def test_choose_picks_what_an_ask_picks(session, photo, tokens):
    answer = session.ask(photo, "a boat", tokens=tokens)
    rounds = choose(session, answer.prob, session.budget(tokens=tokens))
    for px, ids in answer.picked.items():
        assert np.array_equal(np.sort(np.concatenate([np.empty(0, np.int32), *(each[px] for each in rounds)])), ids)


def test_recall_is_told_for_budgets_that_exist(session):
    prob = np.zeros((27, 27), np.float32)
    prob[13, 13] = 1
    box = (1920 - 30, 1080 - 10, 1920 + 30, 1080 + 10)
    found = selection_recall(session, prob, [box], (2160, 3840), (8, 256, 10**6))
    assert set(found) == {"8", "256"} and found["8"] < found["256"] == 1
    assert selection_recall(session, prob, [box, (0, 2000, 100, 2160)], (2160, 3840), (256,))["256"] == 0.5


# -- files of questions ----------------------------------------------------------------------------------------------

def test_a_file_of_questions(folder):
    path = write(folder / "q.jsonl", GOOD, "", {**GOOD, "frame": "sub/b.png", "choices": ["41", "42"], "box_px": [1, 2, 3, 4], "domain": "signs"},
                 {**GOOD, "answer": "", "box_px": [[0, 0, 5, 5], [1.5, 1, 9, 9]]})
    first, second, third = read_questions(path)
    assert first.frame() == folder / "a.png" and first.domain == "" and first.kind == "value" and first.choices == ()
    assert second.where.endswith("line 3") and second.boxes_px == ((1, 2, 3, 4),) and second.choices == ("41", "42") and second.domain == "signs"
    assert third.kind == "not there" and len(third.boxes_px) == 2
    before = read_questions(path).settings
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    assert read_questions(path).settings != before, "another frame is another set"


@pytest.mark.parametrize("line, says", [
    ("{", "no JSON"), ("[1]", "is a list"), ("\"text\"", "is a str"), ("[" * 10**5, "no JSON"),
    ({"frame": "a.png", "prompt": "x"}, "lacks ['answer']"), ({**GOOD, "choises": ["a"]}, "unknown ['choises']"), ({**GOOD, "prompt": 7}, "prompt is '7'"),
    ({**GOOD, "choices": ["42"]}, "2 to 26 texts"), ({**GOOD, "choices": ["42", " "]}, "2 to 26 texts"), ({**GOOD, "choices": ["42", "x", "X "]}, "read the same"),
    ({**GOOD, "choices": ["1", "2"]}, "none of the choices"), ({**GOOD, "box_px": [1, 2, 3]}, "box_px"), ({**GOOD, "box_px": [5, 0, 1, 9]}, "x0 < x1"),
    ({**GOOD, "box_px": [0, 0, "9", 9]}, "box_px"), ('{"frame": "a.png", "prompt": "x", "answer": "y", "box_px": [0, 0, NaN, 9]}', "box_px"), ({**GOOD, "box_px": 5}, "box_px"),
    ({**GOOD, "frame": "missing.png"}, "is not there"), ({**GOOD, "frame": "sub"}, "is not there"), ({**GOOD, "frame": ""}, "inside the file's own folder"),
    ({**GOOD, "frame": "../a.png"}, "inside the file's own folder"), ({**GOOD, "frame": "sub/../../x.png"}, "inside the file's own folder"),
    ({**GOOD, "frame": "/etc/passwd"}, "inside the file's own folder"), ({**GOOD, "frame": "C:\\a.png"}, "inside the file's own folder"),
    ({**GOOD, "frame": "a\0.png"}, "inside the file's own folder"), ({**GOOD, "frame": "link.png"}, "by a link"),
    ({**GOOD, "frame": "q.jsonl"}, "is not a picture"), ({**GOOD, "box_px": [[0, 0, 5, 5], [0, 5000, 5, 5005]]}, "outside of its frame"),
    ({**GOOD, "box_px": [-9, 0, 0, 5]}, "outside of its frame")])
def test_bad_lines_are_named(folder, tmp_path_factory, line, says):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    Image.new("RGB", (8, 8)).save(outside)
    (folder / "link.png").symlink_to(outside)
    with pytest.raises(InputError) as caught:
        read_questions(write(folder / "q.jsonl", GOOD, line))
    assert "q.jsonl line 2" in str(caught.value) and says in str(caught.value)


def test_files_that_are_none(folder):
    with pytest.raises(InputError, match="no.jsonl cannot be read"):
        read_questions(folder / "no.jsonl")
    with pytest.raises(InputError, match="holds no questions"):
        read_questions(write(folder / "empty.jsonl", "", ""))
    (folder / "q.jsonl").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(InputError, match="line 1 is no JSON"):
        read_questions(folder / "q.jsonl")


# -- V*Bench ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def vstar(tmp_path):
    for domain, name, options in (("direct_attributes", "sa_1", ["red", "green", "blue", "white"]), ("relative_position", "sa_2", ["left", "right"])):
        (tmp_path / domain).mkdir()
        Image.fromarray(np.random.default_rng(7).integers(0, 256, (90, 160, 3), np.uint8)).save(tmp_path / domain / f"{name}.jpg")
        (tmp_path / domain / f"{name}.json").write_text(json.dumps({"target_object": ["cup"], "bbox": [[10, 20, 30, 40]], "question": "Which?", "options": options}))
    return tmp_path


def test_v_star_bench_layout(vstar):
    items = read_vstar(vstar)
    assert [(item.key, item.domain, item.answer) for item in items] == [("direct_attributes/sa_1.json", "direct_attributes", "red"), ("relative_position/sa_2.json", "relative_position", "left")]
    assert items[0].boxes_px == ((10, 20, 40, 60),), "x, y, w, h became corners"
    assert sorted(items[0].choices) == ["blue", "green", "red", "white"] and items[0].frame().name == "sa_1.jpg"


def test_options_are_shuffled_by_seed_and_name_alone(vstar):
    options = ["red", "green", "blue", "white"]
    first = [shuffled(options, 0, f"q{i}").index("red") for i in range(400)]
    assert all(70 < first.count(place) < 130 for place in range(4)), "the correct one is everywhere"
    assert shuffled(options, 3, "q7") == shuffled(options, 3, "q7") and len({shuffled(options, seed, "q7") for seed in range(20)}) > 5
    alone = [item for item in read_vstar(vstar) if "sa_2" in item.key][0].choices
    (vstar / "direct_attributes/sa_1.json").unlink()
    assert read_vstar(vstar)[0].choices == alone, "the order does not depend on what else is in the folder"


@pytest.mark.parametrize("changed, says", [({"options": ["red"]}, "at least two"), ({"options": ["red", "Red"]}, "at least two different"), ({"question": " "}, "question"),
                                           ({"bbox": [[1, 2, 3]]}, "bbox"), ({"bbox": [[1, 2, 0, 4]]}, "above 0"), ({"bbox": [[9000, 2, 3, 4]]}, "outside of its frame"),
                                           (None, "no JSON"), ("picture", "no picture"), ("text", "is not a picture")])
def test_bad_v_star_files_are_named(vstar, changed, says):
    path = vstar / "direct_attributes/sa_1.json"
    if changed == "picture":
        path.with_suffix(".jpg").unlink()
    elif changed == "text":
        path.with_suffix(".jpg").write_text("no picture")
    else:
        path.write_text("{" if changed is None else json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(InputError) as caught:
        read_vstar(vstar)
    assert "sa_1.json" in str(caught.value) and says in str(caught.value)


def test_a_folder_without_questions(tmp_path):
    with pytest.raises(InputError, match="no .json"):
        read_vstar(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        read_vstar(tmp_path / "missing")


# -- results ---------------------------------------------------------------------------------------------------------

def test_results_continue_and_a_torn_last_line_is_dropped(tmp_path):
    with Results(tmp_path, {"a": 1}) as results:
        results.add({"key": "x", "n": 1})
        results.add({"key": "y", "n": 2})
        path = results.path
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:-9], whole + b'{"key": "z"', whole + b"\0\0\0\0", whole + b"garbage\n"):
        path.write_bytes(torn)
        with Results(tmp_path, {"a": 1}) as results:
            assert set(results.records) == ({"x"} if len(torn) < len(whole) else {"x", "y"})
            results.add({"key": "w"})
        assert set(Results(tmp_path, {"a": 1}).records) >= {"x", "w"}
    path.write_bytes(whole[:7])
    assert Results(tmp_path, {"a": 1}).records == {} and json.loads(path.read_text()) == {"settings": {"a": 1}}


def test_other_settings_have_another_file(tmp_path):
    with Results(tmp_path, {"a": 1}) as one, Results(tmp_path, {"a": 2}) as other:
        one.add({"key": "x"})
        assert one.path != other.path and not other.records


def test_a_changed_line_is_an_error(tmp_path):
    with Results(tmp_path, {}) as results:
        results.add({"key": "x"})
        results.add({"key": "y"})
    lines = results.path.read_text().splitlines()
    results.path.write_text("\n".join([lines[0], "oops", lines[2], ""]))
    with pytest.raises(InputError, match="line 2 is no record"):
        Results(tmp_path, {})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Results(tmp_path / "file", {})
