"""A second look for an answer that is not sure: when there is one, where, and which of both is given."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ps3_sdk
from ps3_sdk import Frame, InputError, again, ask

PANEL = Path(__file__).parent.parent / "examples" / "frames" / "panel_4k.jpg"
THERE, ABSENT = "what is the word on the purple bar chart?", "what is on the blue gauge?"


@pytest.fixture(scope="module")
def session():
    with ps3_sdk.Session() as session:
        yield session


@pytest.fixture
def look(session):
    return session.look(PANEL)


def scripted(monkeypatch, *said):
    """Looks are answered so; gives the list of the looks that were."""
    seen, answers = [], iter(said)

    def words(looks, *rest, more):
        seen.append(looks[0])
        if on_text := rest[-1]:
            on_text(said[len(seen) - 1].text)
        return next(answers)

    monkeypatch.setattr(ask, "_words", words)
    return seen


def word(text, confidence, found=True):
    return ask.Words(text, (), confidence, found, confidence is not None)


def test_what_is_sure_is_looked_at_once(look, monkeypatch):
    for said in (word("A", 0.8), word("not visible", 0.2, False)):      # that nothing is there is 0.8 sure, too
        seen = scripted(monkeypatch, said)
        answer = look.ask(THERE, look_again=0.8)
        assert len(seen) == 1 and answer.other is None and answer.origin_px == (0, 0) and "again" not in look.memory


@pytest.mark.parametrize("first, second, given, sure", [
    (word("A", 0.5), word("B", 0.6), "B", 0.6), (word("A", 0.5), word("B", 0.4), "A", 0.5), (word("A", 0.5), word("A", 0.7), "A", 0.7), (word("A", 0.5), word("A", 0.2), "A", 0.5),
    (word("A", 0.5), word("not visible", 0.9, False), "A", 0.5), (word("not visible", 0.3, False), word("B", 0.2), "B", 0.2),
    (word("not visible", 0.3, False), word("not visible", 0.4, False), "not visible", 0.4), (word("A", 0.5), word("B", None), "A", 0.5)])
def test_the_surer_answer_is_given_and_the_other_one_kept(look, monkeypatch, first, second, given, sure):
    seen, told = scripted(monkeypatch, first, second), []
    answer = look.ask(THERE, look_again=0.8, on_text=told.append)
    assert (answer.text, answer.confidence) == (given, sure) and "".join(told) == given and len(seen) == 2
    assert {answer.text, answer.other.text} == {first.text, second.text} and answer.other.other is None
    assert f"{0.5 if first.found else 0.7:.2f} sure" in answer.notes[-1]
    assert answer.to_dict()["other"]["text"] == answer.other.text


def test_it_is_half_a_patch_further_on_and_told_in_pixels_of_the_frame(look, monkeypatch):
    seen = scripted(monkeypatch, word("A", 0.5), word("B", 0.6))
    answer = look.ask(THERE, look_again=0.8)
    assert np.shares_memory(seen[1].frame._planes[0], look.frame._planes[0])       # not copied
    assert (seen[1].frame.height, seen[1].frame.width) == (2160 - 4, 3840 - 7) and answer.origin_px == (7, 4)
    assert answer.frame is look.frame and answer.frame_size == (2160, 3840)
    own = ps3_sdk.answer.regions_from_map(answer.prob, answer.picked, (2156, 3833), patch_px=14)
    assert answer.regions[0].box_px == tuple(a + b for a, b in zip(own[0].box_px, (7, 4, 7, 4)))
    assert answer.timing.total_ms > answer.other.timing.total_ms


def test_a_look_is_looked_at_again_once_for_all_its_questions(look, monkeypatch):
    seen = scripted(monkeypatch, *[word("A", 0.5)] * 8)
    look.ask(THERE, look_again=0.8)
    look.ask_many([THERE, ABSENT, THERE], look_again=0.8)
    assert len(seen) == 8 and len({id(each) for each in seen}) == 2


def test_of_many_questions_the_unsure_ones_alone_are_asked_again(look, monkeypatch):
    seen = scripted(monkeypatch, word("A", 0.9), word("B", 0.5), word("C", 0.9), word("D", 0.5), word("X", 0.8), word("Y", 0.1))
    answers = look.ask_many([THERE, ABSENT, THERE, ABSENT], look_again=0.8)
    assert [answer.text for answer in answers] == ["A", "X", "C", "D"] and [answer.prompt for answer in answers] == [THERE, ABSENT] * 2
    assert [each is look for each in seen] == [True] * 4 + [False] * 2 and [answer.other is None for answer in answers] == [True, False, True, False]


def test_the_bundle_says_when_unless_it_is_said_how_much_to_look(look, session, monkeypatch):
    monkeypatch.setitem(session.language.spec, "confidence", session.language.spec["confidence"] | {"again": 0.7})
    for options, looks in (({}, 2), ({"tokens": 482}, 1), ({"looks": 1}, 1), ({"scales": 3}, 1), ({"selection": "top_down"}, 1), ({"look_again": 0}, 1), ({"tokens": 482, "look_again": 0.7}, 2),
                           ({"tokens": 0, "look_again": 1}, 1)):
        seen = scripted(monkeypatch, word("A", 0.5), word("B", 0.6))
        look.ask(THERE, **options)
        assert len(seen) == looks, options
    seen = scripted(monkeypatch, word("A", 0.5), word("A", 0.5))
    session.ask_frames([look, look], THERE)
    assert len(seen) == 1, "several frames are not looked at again"
    monkeypatch.setattr(session.language, "decoder", object())      # a language model of the user's own is as sure as it says
    assert again.threshold(session, None, True) == 0 and again.threshold(session, 0.4, True) == 0.4


def test_a_deadline_keeps_it_from_looking_again(look, monkeypatch):
    seen = scripted(monkeypatch, word("A", 0.5))
    assert look.ask(THERE, look_again=0.8, cancel=lambda: True).text == "A" and len(seen) == 1
    seen = scripted(monkeypatch, word("A", 0.5))
    assert look.ask_many([THERE], look_again=0.8, cancel=lambda: True)[0].text == "A" and len(seen) == 1


@pytest.mark.parametrize("wrong", [-0.1, 1.1, True, "0.8", float("nan")])
def test_what_is_no_confidence_is_refused(look, wrong):
    with pytest.raises(InputError, match="look_again.*0 .never. to 1"):
        look.ask(THERE, look_again=wrong)
    with pytest.raises(InputError, match="look_again"):
        look.ask_many([THERE], look_again=wrong)


def test_a_frame_too_small_for_half_a_patch_is_looked_at_once(session, monkeypatch):
    seen = scripted(monkeypatch, word("A", 0.5))
    answer = session.ask(np.zeros((100, 400, 3), np.uint8), THERE, look_again=0.8)
    assert answer.text == "A" and answer.other is None and len(seen) == 1


def test_nothing_is_scripted_and_both_looks_agree(session):
    """The whole way: the second look's own answer is that of its frame."""
    frame = Frame.of(PANEL)
    once = session.ask(frame, THERE, look_again=0)
    twice = session.ask(frame, THERE, look_again=1)
    alone = session.ask(frame.without(4, 7), THERE, look_again=0)
    assert {once.text, twice.text, alone.text} == {"HANDCAR"} and twice.confidence == max(once.confidence, alone.confidence)
    assert {twice.confidence, twice.other.confidence} == {once.confidence, alone.confidence}


def test_looks_go_though_they_were_looked_at_again(session):
    import gc
    import weakref
    gc.disable()
    try:
        look = session.look(PANEL)
        look.ask(THERE, look_again=1)
        gone = weakref.ref(look), weakref.ref(look.memory["again"])
        del look
        assert gone[0]() is None and gone[1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("format, shape", [("RGB", (20, 30, 3)), ("BGR", (20, 30, 3)), ("RGBA", (20, 30, 4)), ("GRAY", (20, 30)), ("YUYV", (20, 30, 2)), ("NV12", (30, 30))])
def test_a_frame_without_its_first_rows_and_columns_is_the_picture_without_them(format, shape):
    data = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    frame = Frame.of(data, format=format)
    whole = np.asarray(frame.picture())
    for rows, columns in ((0, 0), (4, 6), (3, 5)):
        cut = frame.without(rows, columns)
        y, x = (rows + rows % 2, columns + columns % 2) if format in ("NV12", "YUYV") else (rows, columns)
        assert (cut.height, cut.width) == (20 - y, 30 - x) and np.array_equal(np.asarray(cut.picture()), whole[y:, x:])
    for rows, columns in ((20, 0), (0, 30), (-1, 0)):
        with pytest.raises(InputError, match="at least one pixel"):
            frame.without(rows, columns)


def test_answers_keep_their_shape(look):
    answer = look.ask(THERE, look_again=0)
    assert replace(answer).to_dict()["other"] is None and answer.to_dict()["origin_px"] == [0, 0]
