"""Several frames, texts and questions in one run of a network give what one by one gives, to 1e-5."""
import numpy as np
import pytest

import ps3_sdk
from ps3_sdk import errors

BOUND = 1e-5


@pytest.fixture(scope="module")
def pictures(photo):
    return [photo, np.ascontiguousarray(photo[:, ::-1]), np.ascontiguousarray(photo[::4, ::4])]


def near(ours, wanted):
    return ours.shape == wanted.shape and np.abs(ours - wanted).max() <= BOUND * np.abs(wanted).max()


@pytest.fixture
def runs(session, monkeypatch):
    """(network, batch) of each run"""
    seen, run = [], type(session)._run
    monkeypatch.setattr(type(session), "_run", lambda self, name, inputs, outputs: (seen.append((name, len(next(iter(inputs.values()))))), run(self, name, inputs, outputs))[1])
    return seen


@pytest.mark.parametrize("batch, wanted", [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_frames_are_seen_together(session, pictures, runs, batch, wanted):
    together = session.look_many(pictures, batch=batch)
    assert [num for name, num in runs if name == "encode"] == [num for name, num in runs if name == "score_features"] == wanted
    for look, picture in zip(together, pictures):
        alone = session.look(picture)
        assert near(look.tokens, alone.tokens) and near(look.low_features, alone.low_features) and near(look.view_features, alone.view_features)
        assert all(near(look.kv[key], alone.kv[key]) and (batch < 8 or look.kv[key].base is None) for key in alone.kv)
        assert look.timing.stages_ms["encode_low"] > 0
        assert near(look.encode("a boat", tokens=50).tokens, alone.encode("a boat", tokens=50).tokens)


def test_texts_are_read_together_and_once(seeded, runs):
    with ps3_sdk.Session(seeded) as session:
        texts = [f"thing number {i}" for i in range(40)]
        together = session.encode_text([*texts, texts[0]])
        assert [num for name, num in runs if name == "encode_prompt"] == [32, 8]
        session.encode_text(texts)
        assert len([name for name, _ in runs if name == "encode_prompt"]) == 2
        with ps3_sdk.Session(seeded) as other:
            alone = np.concatenate([other.encode_text(text) for text in texts])
        assert near(together[:40], alone) and np.array_equal(together[40], together[0])
        assert [prompt.text for prompt in session.encode_prompts(["", *texts[:2], "new"])] == ["", *texts[:2], "new"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_questions_about_one_frame_are_answered_together(session, photo, runs, batch):
    prompts = ["the first boat", "the sky above", "", "the first boat"]
    look = session.look(photo)
    del runs[:]
    together = look.ask_many(prompts, batch=batch, tokens=300, choices=["red", "blue"])
    assert sorted((num for name, num in runs if name == "encode"), reverse=True) == {1: [1] * 4, 2: [2, 2], 5: [4]}[batch]
    for answer, prompt in zip(together, prompts):
        alone = look.ask(prompt, tokens=300, choices=["red", "blue"])
        assert answer.prompt == prompt and np.array_equal(answer.prob, alone.prob) and answer.notes == alone.notes
        assert all(np.array_equal(answer.picked[px], alone.picked[px]) for px in alone.picked)
        assert [choice.similarity for choice in answer.choices] == pytest.approx([choice.similarity for choice in alone.choices], abs=BOUND)
        assert set(answer.timing.stages_ms) == set(alone.timing.stages_ms) | {"encode_prompt"}


def test_one_question_about_several_frames_goes_together(session, pictures, runs):
    together = session.ask_frames([session.look(pictures[0]), *pictures[1:]], "a boat", tokens=100, batch=3)
    assert [num for name, num in runs if name == "encode"] == [1, 2, 3]
    for answer, picture in zip(together, pictures):
        alone = session.ask(picture, "a boat", tokens=100)
        assert near(answer.prob, alone.prob) and answer.frame_size == picture.shape[:2]


def test_looks_of_a_batch_do_not_hold_each_other(session, pictures):
    looks = session.encode(pictures[0], "a boat", looks=2), session.look(pictures[0]).ask_many(["a boat", "the sky"], looks=2, batch=2)
    assert all(np.array_equal(looks[0].picked[px], looks[1][0].picked[px]) for px in looks[0].picked)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, None])
def test_batches_of_the_wrong_kind(session, photo, batch):
    look = session.look(photo)
    for call in (lambda: session.look_many([photo], batch=batch), lambda: look.ask_many(["a"], batch=batch), lambda: look.similarity(["a"], batch=batch)):
        with pytest.raises(errors.InputError, match="batch is"):
            call()


@pytest.mark.parametrize("wrong", [[], "a boat", None, 7])
def test_lists_that_are_none(session, photo, wrong):
    with pytest.raises(errors.InputError, match="prompts is"):
        session.look(photo).ask_many(wrong)
    with pytest.raises(errors.InputError, match="frames is"):
        session.look_many(wrong)
    with pytest.raises(errors.InputError, match="must be a str"):
        session.look(photo).ask_many(["a boat", 7])
