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
        assert len(seen) == 1 and answer.other is None and answer.part_px is None and "again" not in look.memory


@pytest.mark.parametrize("first, second, given, sure", [
    (word("A", 0.5), word("B", 0.6), "B", 0.6), (word("A", 0.5), word("B", 0.4), "A", 0.5), (word("A", 0.5), word("A", 0.7), "A", 0.7), (word("A", 0.5), word("A", 0.2), "A", 0.5),
    (word("A", 0.5), word("not visible", 0.9, False), "A", 0.5), (word("not visible", 0.3, False), word("B", 0.4), "B", 0.4),
    (word("not visible", 0.3, False), word("B", 0.2), "not visible", 0.3),
    (word("not visible", 0.3, False), word("not visible", 0.4, False), "not visible", 0.4), (word("A", 0.5), word("B", None), "A", 0.5)])
def test_a_value_with_more_confidence_is_given_and_the_other_answer_kept(look, monkeypatch, first, second, given, sure):
    seen, told = scripted(monkeypatch, first, second), []
    answer = look.ask(THERE, look_again=0.8, on_text=told.append)
    assert (answer.text, answer.confidence) == (given, sure) and "".join(told) == given and len(seen) == 2
    assert {answer.text, answer.other.text} == {first.text, second.text} and answer.other.other is None
    assert f"{0.5 if first.found else 0.7:.2f} sure" in answer.notes[-1]
    assert answer.to_dict()["other"]["text"] == answer.other.text


def test_it_is_part_of_a_patch_further_on_and_told_in_pixels_of_the_frame(look, monkeypatch):
    seen = scripted(monkeypatch, word("A", 0.5), word("B", 0.6))
    answer = look.ask(THERE, look_again=0.8)
    assert np.shares_memory(seen[1].frame._planes[0], look.frame._planes[0])       # not copied
    assert answer.part_px == (11, 6, 3840, 2160) and (seen[1].frame.height, seen[1].frame.width) == (2154, 3829), "the bar chart is in the upper left quarter"
    assert answer.frame is look.frame and answer.frame_size == (2160, 3840) and answer.other.part_px is None
    own = ps3_sdk.answer.regions_from_map(answer.prob, answer.picked, (2154, 3829), patch_px=14)
    assert answer.regions[0].box_px == tuple(a + b for a, b in zip(own[0].box_px, (11, 6, 11, 6)))
    assert answer.timing.total_ms > answer.other.timing.total_ms


@pytest.mark.parametrize("place, edges", [((0, 0), (6, 11, 0, 0)), ((1080, 1920), (6, 11, 0, 0)), ((1081, 0), (0, 11, 6, 0)), ((0, 3839), (6, 0, 0, 11)), ((2159, 3839), (0, 0, 6, 11))])
def test_wherever_it_is_a_place_moves_by_three_to_six_eighths_of_a_patch(place, edges):
    assert again.cut((2160, 3840), 270, place) == edges
    for at, side, before, after in ((place[0], 2160, edges[0], edges[2]), (place[1], 3840, edges[1], edges[3])):
        moved = abs((at - before) * 270 / (side - before - after) - at * 270 / side)
        assert 0.36 < moved < 0.79


@pytest.mark.parametrize("format", ["RGB", "NV12", "YUYV"])
def test_each_corner_is_a_part_of_the_frame(session, format):
    height, width = 1080, 1920
    data = {"RGB": np.zeros((height, width, 3), np.uint8), "NV12": np.full((height * 3 // 2, width), 128, np.uint8), "YUYV": np.full((height, width, 2), 128, np.uint8)}[format]
    look = session.look(Frame.of(data, format=format))
    for place in ((0, 0), (height, 0), (0, width), (height, width)):
        other = again.beside(look, again.cut((height, width), 270, place))
        x0, y0, x1, y1 = other.part_px
        assert (other.look.frame.width, other.look.frame.height) == (x1 - x0, y1 - y0) and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert (x0 > 0, y0 > 0) == (place[1] == 0, place[0] == 0) and (x1 < width, y1 < height) == (place[1] > 0, place[0] > 0)
        assert again.beside(look, again.cut((height, width), 270, place)) is other


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


def test_always_is_also_what_is_certain(look, monkeypatch):
    seen = scripted(monkeypatch, word("A", 1.0), word("B", 0.5))
    assert look.ask(THERE, look_again=1).text == "A" and len(seen) == 2


def test_where_the_second_look_fails_the_first_answer_stands(look, session, monkeypatch):
    from ps3_sdk.errors import ClosedError, RuntimeFailedError
    full, told = RuntimeFailedError("[decode] the GPU's memory is full"), []
    monkeypatch.setattr(again, "beside", lambda *_: (_ for _ in ()).throw(full))
    scripted(monkeypatch, word("A", 0.5), word("B", 0.5), word("C", 0.9))
    answer = look.ask(THERE, look_again=0.8, on_text=told.append)
    assert answer.text == "A" == "".join(told) and answer.notes[-1] == "was not looked at again: [decode] the GPU's memory is full" and answer.other is None
    assert [each.text for each in look.ask_many([THERE, ABSENT], look_again=0.8)] == ["B", "C"]
    monkeypatch.setattr(again, "beside", lambda *_: (_ for _ in ()).throw(ClosedError("[session] closed")))
    scripted(monkeypatch, word("A", 0.5))
    with pytest.raises(ClosedError):
        look.ask(THERE, look_again=0.8)


def test_what_was_looked_at_is_drawn_where_it_lies(look, monkeypatch, tmp_path):
    from PIL import Image
    scripted(monkeypatch, word("A", 0.5), word("B", 0.6), word("A", 0.5))
    twice, once = look.ask(THERE, look_again=0.8), look.ask(THERE, look_again=0)
    pictures = []
    for answer in (twice, once):
        answer.save_overlay(tmp_path / "o.png")
        pictures.append(np.asarray(Image.open(tmp_path / "o.png").convert("RGB")).astype(int)[:2160])
    edges = [np.flatnonzero((picture[300] == (255, 99, 208)).all(axis=1)) for picture in pictures]     # of the finest scale's patches, in one row
    for answer, found in zip((twice, once), edges):
        assert abs(found.min() - answer.regions[0].box_px[0]) <= 1 and abs(found.max() + 1 - answer.regions[0].box_px[2]) <= 1
    assert edges[0].min() != edges[1].min()


def test_a_frame_too_small_for_part_of_a_patch_is_looked_at_once(session, monkeypatch):
    seen = scripted(monkeypatch, word("A", 0.5))
    answer = session.ask(np.zeros((100, 400, 3), np.uint8), THERE, look_again=0.8)
    assert answer.text == "A" and answer.other is None and len(seen) == 1


def test_nothing_is_scripted_and_both_looks_agree(session):
    """The whole way: the second look's own answer is that of its frame."""
    frame = Frame.of(PANEL)
    once = session.ask(frame, THERE, look_again=0)
    twice = session.ask(frame, THERE, look_again=1)
    alone = session.ask(frame.without(top=6, left=11), THERE, look_again=0)
    assert {once.text, twice.text, alone.text} == {"HANDCAR"} and twice.confidence == max(once.confidence, alone.confidence)
    assert {twice.confidence, twice.other.confidence} == {once.confidence, alone.confidence}


def test_looks_go_though_they_were_looked_at_again(session):
    import gc
    import weakref
    gc.disable()
    try:
        look = session.look(PANEL)
        look.ask(THERE, look_again=1)
        gone = weakref.ref(look), *(weakref.ref(beside.look) for beside in look.memory["again"].values())
        del look
        assert len(gone) == 2 and not any(each() for each in gone)
    finally:
        gc.enable()


@pytest.mark.parametrize("format, shape", [("RGB", (20, 30, 3)), ("BGR", (20, 30, 3)), ("RGBA", (20, 30, 4)), ("GRAY", (20, 30)), ("YUYV", (20, 30, 2)), ("NV12", (30, 30))])
def test_a_frame_without_some_edges_is_the_picture_without_them(format, shape):
    pitched = np.random.default_rng(0).integers(0, 256, (shape[0], shape[1] + 6, *shape[2:]), np.uint8)[:, :shape[1]]      # rows of a camera are longer than the picture
    frame = Frame.of(pitched, format=format)
    whole = np.asarray(frame.picture())
    for edges in ((0, 0, 0, 0), (4, 6, 0, 0), (3, 5, 0, 0), (0, 0, 3, 5), (2, 1, 7, 8)):
        cut, (top, left, bottom, right) = frame.without(*edges), [edge + edge % 2 if format in ("NV12", "YUYV") else edge for edge in edges]
        assert (cut.height, cut.width) == (20 - top - bottom, 30 - left - right) and np.array_equal(np.asarray(cut.picture()), whole[top:20 - bottom, left:30 - right])
    for edges in ((20, 0), (0, 30), (-1, 0), (10, 0, 10), (0, 0, -2, 0)):
        with pytest.raises(InputError, match="at least one pixel"):
            frame.without(*edges)


def test_answers_keep_their_shape(look):
    answer = look.ask(THERE, look_again=0)
    assert replace(answer).to_dict()["other"] is None and answer.to_dict()["part_px"] is None
