"""What a user may choose about a vision-language bundle: how patches are picked, several questions, another language model; and empty answers."""
import warnings
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs ps3_sdk[export]")
pytest.importorskip("onnx", reason="needs ps3_sdk[export]")
import golden_vila
from golden_vila import Case
from PIL import Image

import ps3_sdk
from ps3_sdk.errors import InputError, RuntimeMissingError
from ps3_sdk.export.llm_builder import check_packages

try:
    check_packages()
except RuntimeMissingError as error:
    pytest.skip(str(error), allow_module_level=True)
from ps3_sdk.export.make_vlm import make_vlm

SMOOTH, PROMPTED = Case("p4_after_image_smooth"), Case("p1_single_after_prompt")


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """case -> its engine.plan"""
    found = {}
    for case in (SMOOTH, PROMPTED):
        found[case] = tmp_path_factory.mktemp(case.name) / "engine.plan"
        make_vlm(str(case.model), found[case])
    return found


@pytest.fixture(scope="module")
def session(plans):
    with ps3_sdk.Session(plans[PROMPTED]) as opened:
        yield opened


def test_saliency_and_smoothing_give_the_references_answer(plans):
    """The stored case p4: mode after_image, smoothed, two looks; ties are the reference's own, to the lower id."""
    frame, text, count = SMOOTH.folder / "image0.png", SMOOTH.json["prompt_parts"][1], len(SMOOTH.json["greedy_ids"])
    assert SMOOTH.json["effective"]["look_close_mode"] == "after_image" and SMOOTH.json["effective"]["smooth_selection_prob"]
    model = golden_vila.load(SMOOTH.name)
    theirs = model.generate([Image.open(frame), text], replace(SMOOTH.options(model.config.looks), rule="patches"), max_new_tokens=count)
    with ps3_sdk.Session(plans[SMOOTH]) as session:
        ours = session.ask(frame, text, looks=2, selection="bottom_up", smooth=True, rule="patches", max_tokens=count)
        assert ours.text == theirs.text
        assert np.array_equal(np.concatenate(list(ours.picked.values())), np.concatenate([ids.numpy() for ids in theirs.high[0].ids]))


def test_a_models_own_way_of_looking_is_the_default(session, photo):
    assert session.language.looks_by_prompt == (PROMPTED.json["effective"]["look_close_mode"] == "after_prompt")
    look = session.look(photo)
    by_prompt, by_saliency = (look.encode("Where is it?", tokens=0, selection=way) for way in ("top_down", "bottom_up"))
    assert np.allclose(look.encode("Where is it?", tokens=0).prob, by_prompt.prob, atol=1e-5)
    assert np.array_equal(by_saliency.prob, session.score(look, session.prior())) and not np.array_equal(by_prompt.prob, by_saliency.prob)


def test_a_model_that_looks_by_saliency_alone_does_so_and_says_so(session, photo, monkeypatch):
    monkeypatch.delitem(session.language._networks, "prompt_head")
    answer = session.ask(photo, "Where is it?", tokens=8, max_tokens=2)
    assert np.array_equal(answer.prob, session.score(session.look(photo), session.prior())) and any("by saliency" in note for note in answer.notes)
    with pytest.raises(InputError, match="look_close_mode after_image"):
        session.ask(photo, "Where?", selection="top_down", tokens=8)


def test_several_questions_about_one_frame(session, photo):
    prompts = ["What is written there?", "Where does it lead to?", "What is written there?"]
    look = session.look(photo)
    together = look.ask_many(prompts, tokens=200, max_tokens=6, batch=2)
    for answer, prompt in zip(together, prompts):
        alone = session.look(photo).ask(prompt, tokens=200, max_tokens=6)
        assert answer.text == alone.text and all(np.array_equal(answer.picked[px], alone.picked[px]) for px in alone.picked)
        assert np.allclose(answer.prob, alone.prob, atol=1e-5)


def test_an_empty_answer_is_empty_and_says_so(session, photo, monkeypatch):
    monkeypatch.setattr(session.language, "stop_ids", frozenset(range(session.language.spec["vocabulary"])))
    pieces = []
    answer = session.ask(photo, "What?", tokens=8, on_text=pieces.append)
    assert answer.text == "" and pieces == [] and any("answer is empty" in note for note in answer.notes)
    assert "answer   \n" in f"{answer}\n" and answer.to_dict()["text"] == ""


# -- a language model elsewhere ---------------------------------------------------------------------------------------

class Rows:
    """A state that can be gone on from, and not cut."""

    def __init__(self, rows=(), hidden=None):
        self.rows, self.hidden, self.length = list(rows), hidden, len(rows)

    def upto(self, length):
        return Rows()


class Elsewhere:
    """Stands in for a server: keeps the rows it was sent and reads them all anew each time."""
    empty = Rows()

    def __init__(self, decoder):
        self.decoder, self.sent = decoder, []

    def prefill(self, embeds, state=None):
        self.sent.append(len(embeds))
        rows = [*(state.rows if state else []), *embeds]
        return Rows(rows, self.decoder.prefill(np.stack(rows)).hidden)

    def generate(self, state, embed, **options):
        return self.decoder.generate(self.decoder.prefill(np.stack(state.rows)), embed, **options)


def test_a_language_model_elsewhere_gives_the_same_answers(plans, session, photo):
    elsewhere = Elsewhere(session.language.decoder)
    with ps3_sdk.Session(plans[PROMPTED], language_model=elsewhere) as other:
        assert "decode" not in other._networks and "decode" in session._networks
        look, own = other.look(photo), session.look(photo)
        for prompt in ("What is written there?", "Where does it lead to?"):
            answer, wanted = (each.ask(prompt, tokens=100, max_tokens=6) for each in (look, own))
            assert answer.text == wanted.text and answer.notes == wanted.notes and np.allclose(answer.prob, wanted.prob, atol=1e-5)
        assert len(elsewhere.sent) == 4         # per question: the prompt pass, the answer pass
        with pytest.raises(InputError, match="context"):
            look.ask("word " * 40_000, tokens=8)


@pytest.mark.parametrize("model, missing", [(object(), "prefill, generate, empty"), (type("Half", (), {"prefill": print, "generate": print, "empty": 1})(), "empty.length, empty.upto")])
def test_what_a_language_model_lacks_is_named(plans, model, missing):
    with pytest.raises(InputError, match=missing):
        ps3_sdk.Session(plans[PROMPTED], language_model=model)


def test_encoders_take_no_language_model(seeded):
    with pytest.raises(InputError, match="is an encoder"):
        ps3_sdk.Session(seeded, language_model=object())


# -- licences -----------------------------------------------------------------------------------------------------------

def test_weights_for_non_commercial_use_say_so_when_opened(monkeypatch, capsys, photo_path):
    from ps3_sdk import bundle, cli
    opened = bundle.Bundle.open

    def licensed(path, verify=True):
        found = opened(path, verify=verify)
        found.manifest["model"] |= {"weights": "trained", "licence": "NVIDIA PS3 weights: non-commercial use"}
        return found

    monkeypatch.setattr(bundle.Bundle, "open", staticmethod(licensed))
    with pytest.warns(UserWarning, match="default.plan: licence of the weights: NVIDIA PS3 weights: non-commercial use"), ps3_sdk.Session() as session:
        assert any("non-commercial" in note for note in session.ask(photo_path, "", tokens=0).notes)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            ps3_sdk.Session().close()
    assert len(shown) == 1
    assert cli.main(["ask", str(photo_path), "a boat", "--tokens", "0", "--bottom-up", "--smooth"]) == 0
    said = capsys.readouterr()
    assert said.err == "ps3: licence of the weights: NVIDIA PS3 weights: non-commercial use\n" and "as asked" in said.out


def test_other_weights_open_without_a_word(recwarn):
    ps3_sdk.Session().close()
    assert not recwarn.list
