"""A budget of several glances: the embedded bundle looks in one place after another until it finds what was asked."""
from pathlib import Path

import numpy as np
import pytest

import ps3_sdk
from ps3_sdk import ask, budget
from ps3_sdk.evaluate.recall import choose, selection_recall
from ps3_sdk.probability import around, nearby

PANEL = Path(__file__).parent.parent / "examples" / "frames" / "panel_4k.jpg"
THERE, ABSENT = "what is the word on the purple bar chart?", "what is on the blue gauge?"
GLANCE = 482      # of which whole blocks are 480


@pytest.fixture(scope="module")
def session():
    with ps3_sdk.Session() as session:
        yield session


@pytest.fixture(scope="module")
def look(session):
    return session.look(PANEL)


def scripted(monkeypatch, *said: ask.Words):
    """Glances are answered so; gives the list of what each saw."""
    seen, answers = [], iter(said)

    def words(_, ids, encodings, *rest, more):
        seen.append((encodings[0], more))
        return next(answers)

    monkeypatch.setattr(ask, "_words", words)
    return seen


NO = ask.Words("not visible", (), 0.1, False)


def test_what_is_found_at_once_costs_no_more(look):
    answers = [look.ask(THERE, tokens=tokens) for tokens in (None, 2 * GLANCE, 5000)]
    assert [sum(map(len, answer.picked.values())) for answer in answers] == [480, 480, 496]
    assert {answer.text for answer in answers} == {"HANDCAR"} and not any("places" in note for answer in answers for note in answer.notes)


def test_glances_go_on_elsewhere_until_something_is_found(look, session, monkeypatch):
    seen = scripted(monkeypatch, NO, NO, ask.Words("X", (), 0.7, True))
    answer = look.ask(THERE, tokens=4 * GLANCE)
    assert (answer.text, answer.confidence, answer.found) == ("X", 0.7, True) and [more for _, more in seen] == [True] * 3
    centres = []
    for n, (encoding, _) in enumerate(seen):
        wanted = choose(session, around(encoding.prob, 1, n), session.budget(GLANCE))
        assert all(np.array_equal(ids, wanted[0][px]) for px, ids in encoding.picked.items())
        centres.append(np.unravel_index(around(encoding.prob, 1, n).argmax(), encoding.prob.shape))
    apart = [max(abs(int(a) - int(b)) for a, b in zip(one, other)) for i, one in enumerate(centres) for other in centres[:i]]
    assert min(apart) > 1
    for px, ids in answer.picked.items():
        assert np.array_equal(ids, np.unique(np.concatenate([encoding.picked[px] for encoding, _ in seen])))
    assert "looked at 3 places" in answer.notes[-1] and len(answer.regions) == 1
    x0, y0, x1, y1 = answer.regions[0].box_px       # of the place where it was found
    row, col = centres[-1]
    assert x0 <= (col + 0.5) * 3840 / 27 < x1 and y0 <= (row + 0.5) * 2160 / 27 < y1


def test_an_answer_is_as_sure_as_the_place_that_it_was_read_in(look, session, monkeypatch):
    """Of a later glance the place is less probable than the first one's, where nothing was found."""
    said, words, prob = [], ask._words, look.ask(THERE, tokens=GLANCE).prob
    monkeypatch.setitem(session.language.spec, "confidence", session.language.spec["confidence"] | {"unseen": 1.0})      # whatever is there, a value is given
    monkeypatch.setattr(ask, "calibrated", lambda text, place, weights: said.append(place) or 0.5)
    first = iter([NO])
    monkeypatch.setattr(ask, "_words", lambda *arguments, more: next(first, None) or words(*arguments, more=more))
    answer = look.ask(THERE, tokens=2 * GLANCE)
    elsewhere = np.where(nearby(prob, 1), 0, prob)
    assert answer.found and said == [pytest.approx(float(elsewhere.max()))] and said[0] < prob.max()
    encoding = look.encode(THERE, tokens=GLANCE)
    assert encoding.best_seen == pytest.approx(float(prob.max())) and look.encode(THERE, tokens=0).best_seen == pytest.approx(float(prob.max()))


def test_where_no_glance_finds_it_that_is_said_and_how_sure_the_least_sure_one_is(look, monkeypatch):
    seen = scripted(monkeypatch, NO, NO._replace(confidence=0.4), NO._replace(confidence=0.2))
    answer = look.ask(THERE, tokens=3 * GLANCE)
    assert (answer.text, answer.found, answer.confidence) == ("not visible", False, 0.4) and [more for _, more in seen] == [True, True, False]
    assert answer.regions == ps3_sdk.answer.regions_from_map(seen[0][0].prob, seen[0][0].picked, answer.frame_size, patch_px=14)


def test_a_cancelled_glance_leaves_the_answer_before_it(look, monkeypatch):
    """A deadline that passes while it looks elsewhere makes nothing found of what was not."""
    seen = scripted(monkeypatch, NO, ask.Words("", ("the answer was cancelled",), None, False, whole=False), ask.Words("X", (), 0.9, True))
    answer = look.ask(THERE, tokens=3 * GLANCE)
    assert (answer.text, answer.found, answer.confidence) == ("not visible", False, 0.1) and len(seen) == 2 and "the answer was cancelled" in answer.notes


@pytest.mark.parametrize("prompt", [THERE, ABSENT])
def test_what_is_cut_before_it_says_anything_is_not_found(look, prompt):
    cut = look.ask(prompt, cancel=lambda: True)
    assert (cut.text, cut.found, cut.confidence) == ("", False, None) and "the answer was cancelled" in cut.notes
    one = look.ask(prompt, max_tokens=1)
    assert one.found == (prompt == THERE) and one.confidence is None


def test_looks_go_when_nobody_holds_them(session):
    """Not when Python's collector comes round: a camera's loop would hold a second's worth of frames, keys and values."""
    import gc
    import weakref
    gc.disable()
    try:
        for use in (lambda look: look.ask(THERE), lambda look: look.encode(THERE)):       # both keep what the language model has read
            look = session.look(PANEL)
            use(look)
            gone = weakref.ref(look)
            del look
            assert gone() is None
    finally:
        gc.enable()


def test_a_closed_session_holds_no_networks_and_no_tables():
    import weakref
    with ps3_sdk.Session() as opened:
        kept = [weakref.ref(network) for network in opened._networks.values()] + [weakref.ref(opened.language.embed)]
        look = opened.look(PANEL)
        look.ask(THERE)
    assert opened.language is not None and all(each() is None for each in kept)
    with pytest.raises(ps3_sdk.ClosedError):
        look.ask(THERE)


def test_streams_say_only_what_is_answered(look):
    for prompt in (THERE, ABSENT):
        pieces = []
        answer = look.ask(prompt, tokens=3 * GLANCE, on_text=pieces.append)
        assert "".join(pieces).strip() == answer.text
    assert not answer.found and sum(map(len, answer.picked.values())) > 2 * 480


def test_many_questions_are_answered_as_each_alone(look):
    prompts = [THERE, ABSENT, "read the red bar chart"]
    together, alone = look.ask_many(prompts, tokens=3 * GLANCE, batch=2), [look.ask(prompt, tokens=3 * GLANCE) for prompt in prompts]
    for ours, theirs in zip(together, alone):
        assert (ours.text, ours.found, ours.notes) == (theirs.text, theirs.found, theirs.notes)
        assert all(np.array_equal(ids, theirs.picked[px]) for px, ids in ours.picked.items())
    assert {answer.found for answer in together} == {True, False}


def test_anywhere_and_smooth_are_one_glance_as_encode_is(look, session):
    for options in (dict(selection="top_down"), dict(selection="bottom_up"), dict(selection="top_down", smooth=True)):
        answer, encoding = look.ask(ABSENT, tokens=2000, **options), look.encode(ABSENT, tokens=2000, **options)
        assert all(np.array_equal(ids, encoding.picked[px]) for px, ids in answer.picked.items())
        assert not any("places" in note for note in answer.notes)


@pytest.mark.parametrize("tokens, wanted", [(0, [0]), (100, [100]), (GLANCE, [GLANCE]), (2 * GLANCE - 3, [2 * GLANCE - 3]), (2 * GLANCE, [GLANCE] * 2), (2000, [500] * 4)])
def test_a_budget_is_divided_into_glances_of_at_least_the_default(session, tokens, wanted):
    found = session.glances(session.budget(tokens), anywhere=False)
    assert len(found) == len(wanted) and all(each - 3 <= part.num_patches <= each for part, each in zip(found, wanted))
    assert session.glances(session.budget(tokens), anywhere=True) == [session.budget(tokens)]


def test_all_patches_are_no_more_glances_than_there_are_neighbourhoods(session, look, monkeypatch):
    whole = session.budget(10 ** 6)
    found = session.glances(whole, anywhere=False)
    assert len(found) == 9 * 9 and 87_000 < sum(part.num_patches for part in found) <= 87_480 and all(part.notes == whole.notes for part in found)
    scripted(monkeypatch, NO, ask.Words("X", (), 0.7, True))
    notes = look.ask(THERE, tokens=10 ** 6).notes      # whichever glance is answered, what was changed in the budget is told, and nothing else is claimed
    assert [note for note in notes if "were asked for" in note] == ["1000000 patches were asked for; the model has no more than 87480"]
    assert all(part.looks[0][1:] == [0, 0] for part in session.glances(session.budget(1500, scales=1), anywhere=False))


def test_parts_of_a_budget(session):
    whole = budget.plan(session.geometry, 1000)
    assert budget.parts(session.geometry, whole, 600, 9) == [whole] and len(budget.parts(session.geometry, whole, 300, 9)) == 3
    assert [part.num_patches for part in budget.parts(session.geometry, whole, 100, 2)] == [498, 498]


def test_neighbourhoods_that_were_looked_at_are_passed_over():
    prob = np.random.default_rng(0).random((9, 9), dtype=np.float32)
    first = around(prob, 1)
    second = around(prob, 1, passed=1)
    assert np.array_equal(first, prob + nearby(prob, 1)) and not nearby(prob, 1)[np.unravel_index(second.argmax(), prob.shape)]
    assert np.array_equal(second, around(np.where(nearby(prob, 1), np.float32(0), prob), 1))


def test_recall_counts_the_glances_of_a_budget(session):
    prob = np.full((27, 27), 0.1, np.float32)
    prob[3, 3], prob[20, 20] = 0.9, 0.8
    box = [(20.3 * 3840 / 27, 20.3 * 2160 / 27, 20.7 * 3840 / 27, 20.7 * 2160 / 27)]
    found = selection_recall(session, prob, box, (2160, 3840), (482, 964), anywhere=False)
    assert found == {"482": 0.0, "964": 1.0}
    assert selection_recall(session, prob, box, (2160, 3840), (482, 964)) == {"482": 1.0, "964": 1.0}


def test_an_option_that_there_is_none_of_is_named_as_one_of_ask(look):
    for way in (lambda: look.ask(THERE, budget=3), lambda: look.ask_many([THERE], on_text=print), lambda: look.session.ask_frames([look], THERE, budget=3)):
        with pytest.raises(TypeError, match=r"^ask\(\) got an unexpected keyword argument '(budget|on_text)'"):
            way()


def test_what_is_cancelled_before_it_begins_encodes_nothing_and_reads_nothing(look, session, monkeypatch):
    event = __import__("threading").Event()
    event.set()
    monkeypatch.setattr(session.language, "answer", lambda *_, **__: pytest.fail("the language model was run"))
    answer = look.ask(THERE, cancel=event)
    assert not sum(map(len, answer.picked.values())) and answer.text == "" and "the answer was cancelled" in answer.notes


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0])
def test_an_answer_of_no_token_is_refused_before_anything_is_encoded(look, session, monkeypatch, wrong):
    monkeypatch.setattr(session, "encode_high_many", lambda *_, **__: pytest.fail("patches were encoded"))
    with pytest.raises(ps3_sdk.InputError, match="max_tokens is .*; a whole number of at least 1"):
        look.ask(THERE, max_tokens=wrong)


def test_smoothing_is_refused_where_one_place_is_looked_around(look):
    for ask in (look.ask, look.encode):
        with pytest.raises(ps3_sdk.InputError, match='smooth is True; .* looks around the most probable place.*selection="top_down"'):
            ask(THERE, smooth=True)
