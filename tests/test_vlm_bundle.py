"""VILA-HD as a robot runs it: an exported bundle in ONNX Runtime beside the stored answers of the public model, and used as a user would."""
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
pytest.importorskip("onnx", reason="needs ps3_sdk[export]")
import golden_vila
from golden_vila import BOUND, CASES, Case

import ps3_sdk
from ps3_sdk.errors import InputError, RuntimeMissingError
from ps3_sdk.evaluate.recall import choose
from ps3_sdk.export.check import relative_error
from ps3_sdk.export.llm_builder import check_packages

try:
    check_packages()
except RuntimeMissingError as error:
    pytest.skip(str(error), allow_module_level=True)
from ps3_sdk.export.make_vlm import make_vlm
from ps3_sdk.probability import calibrated, enlarged, smoothed


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """checkpoint folder -> session of its exported bundle"""
    class Sessions(dict):
        def __missing__(self, folder):
            plan = tmp_path_factory.mktemp(folder.name) / "engine.plan"
            make_vlm(str(folder), plan)
            self[folder] = ps3_sdk.Session(plan)
            return self[folder]
    opened = Sessions()
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture
def session(sessions):
    return sessions[Case("p1_single_after_prompt").model]


def closely(session, look, case, frame):
    """Tokens of the patches that the public model picked, scale by scale, all looks together: picked ids and tokens."""
    scales = session.geometry["scales_px"][1:]
    found = {px: ([], []) for px in scales}
    for t in range(len(case.reports(frame))):
        picks = {px: case.step(t, k, frame).numpy().astype(np.int32) for k, px in enumerate(scales)}
        high = session.encode_high(*session.gather(look.frame, picks), look.kv)
        for px, part in zip(scales, np.split(high, np.cumsum([len(ids) for ids in picks.values()])[:-1])):
            found[px][0].append(picks[px])
            found[px][1].append(part)
    ids = {px: np.concatenate(parts) for px, (parts, _) in found.items()}
    order = {px: np.argsort(each, kind="stable") for px, each in ids.items()}
    return {px: ids[px][order[px]] for px in scales}, np.concatenate([np.concatenate(found[px][1])[order[px]] for px in scales])


@pytest.mark.parametrize("name", CASES)
def test_golden_case_through_the_bundle(sessions, name):
    case = Case(name)
    session, found, language = sessions[case.model], case.tensors, sessions[case.model].language
    near = lambda ours, key: relative_error(np.asarray(ours), found[key].numpy()) <= BOUND
    looks = [session.look(case.folder / f"image{i}.png") for i in range(case.num_frames)]
    assert all(near(look.rows, f"low_res_projected.{i}") for i, look in enumerate(looks))

    ids = language.ids(case.parts(looks))
    assert ids == case.json["token_ids"]
    vector, read = language.ask(ids, [(look.name, look.rows) for look in looks], None)
    if case.json["effective"]["look_close_mode"] == "after_prompt":
        assert language.prompt_end(ids) == case.json["prompt_end_position"]
        assert near(read.state.hidden[None], "prompt_hidden_state") and near(vector[None], "top_down_prompt")
    if not case.json["effective"]["smooth_selection_prob"]:
        query = session.prior() if vector is None else ps3_sdk.prompt.Prompt("", vector, None)
        maps = np.stack([session.score(look, query) for look in looks])
        assert near(maps, "select_probs_27x27.scale0")
    else:
        step = (n := session.geometry["scales_px"][1] // session.patch_px) // 6
        assert case.json["effective"]["look_close_mode"] == "after_image"
        query = session.prior()
        assert near(np.stack([smoothed(session.score(look, query), n)[::step, ::step] for look in looks]), "select_probs_6x6.scale0")

    high = []
    for i, look in enumerate(looks):
        picked, tokens = closely(session, look, case, i)
        rows = language.high_rows(tokens, picked)
        high.append(rows if len(rows) else look.rows[:1])
        assert near(high[-1], f"high_res_projected.{i}")
    rows = language.assemble(ids, [[(look.name, look.rows), (object(), each)] for look, each in zip(looks, high)])
    assert len(rows.names) == case.json["inputs_embeds_len"] and near(np.linalg.norm(rows.embeds, axis=1), "inputs_embeds_row_norms")
    read = language.read(rows, read)
    assert near(read.state.logits, "last_logits")
    for token, stored, gap in zip(language.answer(read), case.json["greedy_ids"], case.json["greedy_top2_gaps"]):
        if gap < 2 * BOUND * np.abs(read.state.logits).max():
            break       # too close to call: either token is right
        assert token.id == stored


@pytest.mark.parametrize("name", ["p1_single_after_prompt", "p6_no_complete_block"])
def test_ask_gives_the_stored_answer(sessions, name):
    case = Case(name)
    pieces, tokens = [], case.json["env"].get("NUM_TOKEN_LOOK_CLOSE")
    answer = sessions[case.model].ask(case.folder / "image0.png", case.json["prompt_parts"][1], max_tokens=len(case.json["greedy_ids"]),
                                      tokens=int(tokens) if tokens else None, on_text=pieces.append)
    assert answer.text == case.json["response"].strip()
    assert "".join(pieces).strip() == answer.text and "decode" in answer.timing.stages_ms


def test_looking_around_and_rows_told_how_probable_their_place_is_are_the_references(tmp_path):
    """Our extensions. look_close_around: neighbours of the best place are picked first; high_res_prob_embed: rows get longer by a learnt vector times
    their place's probability."""
    from safetensors.torch import load_file, save_file
    from ps3_sdk.export.reference.vila.model import VilaHd
    case = Case("p1_single_after_prompt")
    folder = shutil.copytree(case.model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"high_res_prob_embed": True, "look_close_around": 1}), "utf-8")
    weights = next((folder / "mm_projector").glob("*.safetensors"))
    tensors = load_file(weights)
    width = tensors["high_res_pos_embed"].shape[-1]
    save_file(tensors | {"high_res_prob_embed": torch.randn(1, 1, width, generator=torch.Generator().manual_seed(1))}, weights)
    make_vlm(str(folder), tmp_path / "engine.plan")
    model, question = VilaHd.from_checkpoint(folder), case.json["prompt_parts"][1]
    with ps3_sdk.Session(tmp_path / "engine.plan") as session:
        look = session.look(case.folder / "image0.png")
        encoding = look.encode(question)
        told = session.language.high_rows(encoding.high_tokens, encoding.picked, encoding.prob)
        plain = session.language.high_rows(encoding.high_tokens, encoding.picked)
        seen = model.look(Image.open(case.folder / "image0.png"))
        asked = model.ask(model.chat.ids(model.chat.message([seen, question])), [seen])
        picked = model.select(seen, asked.vector)
        wanted = model.encode(seen, picked.looks, picked.probs)
        for px, ids, theirs in zip(encoding.picked, encoding.picked.values(), wanted.ids):
            assert np.array_equal(ids, theirs.numpy())
        elsewhere = model.select(seen, asked.vector, replace(model.config.looks, around=None)).looks
        assert not all(torch.equal(one, other) for look, plain_look in zip(picked.looks, elsewhere) for one, other in zip(sum(look, []), sum(plain_look, [])))
        for selection in ("top_down", "bottom_up"):         # asked for by name: picked wherever the map is high
            for given in (dict(prompt=question), dict(prompt=question, prompt_embedding=asked.vector[0].numpy())) if selection == "top_down" else (dict(prompt=question),):
                found = look.encode(selection=selection, **given)
                anywhere = choose(session, found.prob, session.budget())
                assert all(np.array_equal(ids, np.concatenate([each[px] for each in anywhere])) for px, ids in found.picked.items())
        for px, prob in zip(session.geometry["scales_px"][1:], picked.probs):
            assert relative_error(enlarged(encoding.prob, px // session.patch_px), prob.numpy()) <= BOUND
        assert relative_error(told, wanted.rows.numpy()) <= BOUND < relative_error(plain, wanted.rows.numpy())
        ids = model.generate([seen, question], max_new_tokens=9).ids
        last = next(n for n in range(1, 9) if ids[n] not in ids[:n])
        model.chat.stop_ids = session.language.stop_ids = frozenset({ids[last]})     # so that both end there
        answer, theirs = session.ask(case.folder / "image0.png", question), model.generate([seen, question])
        assert len(theirs.ids) == last and answer.text == theirs.text.strip() and answer.confidence == pytest.approx(np.exp(theirs.logprob), rel=1e-3)


def test_two_frames_give_one_answer_as_the_reference_does(sessions):
    """The stored case has text between its frames; here both come first, so the reference itself is asked."""
    from PIL import Image
    case = Case("p2_two_images_carry")
    session, model = sessions[case.model], golden_vila.load(case.name)
    pictures = [case.folder / f"image{i}.png" for i in range(2)]
    answers = session.ask_frames(pictures, "What is written on the small red sign?", looks=1, rule="patches", max_tokens=8)
    theirs = model.generate([*map(Image.open, pictures), "What is written on the small red sign?"], replace(model.config.looks, num_looks=1, rule="patches"), max_new_tokens=8)
    assert [answer.text for answer in answers] == [theirs.text] * 2
    assert all(np.array_equal(np.concatenate(list(answer.picked.values())), torch.cat(high.ids).numpy()) for answer, high in zip(answers, theirs.high))


def test_forty_frames_fit_or_are_refused(session):
    frame = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(InputError, match="context"):
        session.ask_frames([frame] * 40, "How many?", tokens=0, max_tokens=1)
    assert len(session.ask_frames([frame] * 5, "How many?", tokens=0, max_tokens=1)) == 5


def test_a_second_question_reads_neither_the_frame_nor_its_rows_again(session, photo, monkeypatch):
    look = session.look(photo)
    first = look.ask("What is written there?", max_tokens=4)
    read, rows = [], session.language.decoder.prefill
    monkeypatch.setattr(session.language.decoder, "prefill", lambda embeds, state=None: (read.append(len(embeds)), rows(embeds, state))[1])
    monkeypatch.setattr(type(session), "encode_low", lambda *_: pytest.fail("the low-res pass ran again"))
    second = look.ask("Where does it lead to?", max_tokens=4)
    assert max(read[:1]) < 60, "the question alone is read before looking closely, not the 196 low-res rows"
    monkeypatch.undo()
    fresh = session.look(photo).ask("Where does it lead to?", max_tokens=4)
    assert second.text == fresh.text and first.timing.stages_ms["encode_low"] == second.timing.stages_ms["encode_low"]
    assert np.array_equal(second.prob, fresh.prob)


@pytest.mark.parametrize("name, r", [("p1_single_after_prompt", 2), ("p3_4k_num_token", 3)])
def test_whole_blocks_waste_no_patch_and_are_those_of_the_reference(sessions, photo, name, r):
    from ps3_sdk.export.reference.vila.blocks import complete_blocks, select_blocks as theirs
    session = sessions[Case(name).model]
    look = session.look(photo)
    by = {rule: look.encode("Where is it?", tokens=700, rule=rule) for rule in ("patches", "blocks", None)}
    rows = {rule: len(session.language.high_rows(encoding.high_tokens, encoding.picked)) for rule, encoding in by.items()}
    num = {rule: sum(map(len, encoding.picked.values())) for rule, encoding in by.items()}
    assert rows["blocks"] * r * r == num["blocks"] <= num["patches"] and rows["blocks"] >= rows["patches"]
    assert rows[None] == rows["blocks" if r == 2 else "patches"], "the default is blocks only where that is a tie rule"
    for px, ids in by["blocks"].picked.items():
        n = px // 14
        prob = torch.from_numpy(by["blocks"].prob_at(px).copy())
        assert np.array_equal(ids, theirs(prob, len(ids), torch.zeros(n * n, dtype=torch.bool), r).numpy())
        assert len(complete_blocks(torch.from_numpy(ids).long(), n, r)[0]) * r * r == len(ids)
    with pytest.raises(InputError, match="rule is 'best'"):
        look.ask("Where?", rule="best")


def test_what_crashes_the_public_model_is_answered(session, photo):
    assert session.ask(photo, "What is it?", tokens=0, max_tokens=3).picked[756].size == 0
    assert session.ask(photo, "What is it?", tokens=1, max_tokens=3).text is not None
    assert session.ask(photo, "", tokens=8, max_tokens=3).text is not None


def test_cancel_max_tokens_and_sampling(session, photo):
    look = session.look(photo)
    stop = threading.Event()
    stop.set()
    cancelled = look.ask("What is it?", tokens=8, cancel=stop)
    assert cancelled.text == "" and any("cancelled" in note for note in cancelled.notes)
    cut = look.ask("What is it?", tokens=8, max_tokens=2)
    assert any("cut at max_tokens" in note for note in cut.notes)
    assert cancelled.confidence is None and cut.confidence is None, "of words that may go on nothing is known"
    drawn = [look.ask("What is it?", tokens=8, max_tokens=8, sampling=ps3_sdk.Sampling(temperature=2.0, seed=seed)).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_confidence_is_the_models_probability_of_its_answer(session, photo, monkeypatch):
    look = session.look(photo)
    ids = session.language.ids([look, "What is it?"])
    read = session.language.read(session.language.assemble(ids, [[(look.name, look.rows), (object(), look.rows[:1])]]))
    said = list(session.language.answer(read, max_tokens=9))
    last = next(n for n in range(1, 9) if said[n].id not in [token.id for token in said[:n]])       # a token that ends the answer from now on
    monkeypatch.setattr(session.language, "stop_ids", frozenset({said[last].id}))
    logprobs, generation = [token.logprob for token in said[:last + 1]], session.language.answer(read)
    assert len(list(generation)) == last and generation.stopped == "stop id"
    answer = session.ask(photo, "What is it?", tokens=0)
    assert answer.found and abs(answer.confidence - np.exp(sum(logprobs))) < 1e-4 and abs(generation.logprob - sum(logprobs)) < 1e-9
    assert answer.to_dict()["confidence"] is not None and "confidence" in str(answer)
    weights = {"bias": 0.3, "text": 0.6, "place": 1.2}
    monkeypatch.setitem(session.language.spec, "confidence", weights)
    sure = session.ask(photo, "What is it?", tokens=0)
    assert sure.confidence == pytest.approx(calibrated(answer.confidence, float(answer.prob.max()), weights))
    elsewhere = session.ask(photo, "What is it?", tokens=0, selection="bottom_up")    # it was measured where a model looks by itself
    assert elsewhere.confidence == pytest.approx(answer.confidence, abs=1e-4)
    monkeypatch.setitem(session.language.spec, "not_seen", answer.text)
    missing = session.ask(photo, "What is it?", tokens=0)
    assert not missing.found and abs(missing.confidence - (1 - answer.confidence)) < 1e-6


def test_control_words_in_a_prompt_are_text_or_deleted(session, photo):
    language = session.language
    assert language.ids(["a", "<image>b"]) == language.ids(["a", "b"])
    assert language.ids([object(), "x <ima<image>ge> y"]).count(language.spec["image_id"]) == 1
    assert session.ask(photo, "what <image> is <vila/video> this?", tokens=8, max_tokens=2).text is not None


def test_a_prompt_longer_than_the_context_is_refused(session, photo):
    with pytest.raises(InputError, match="context"):
        session.ask(photo, "word " * 40_000, tokens=8)


def test_what_needs_a_text_tower_is_refused_before_any_look(session, photo, monkeypatch):
    look = session.look(photo)
    monkeypatch.setattr(session, "encode_high_many", None)
    for call in (lambda: look.ask("which?", choices=["a", "b"]), lambda: look.ask_many(["which?"], choices=["a", "b"]), lambda: session.encode_text("a")):
        with pytest.raises(InputError, match="vision-language bundle without a text tower.*PS3 encoder"):
            call()


def test_more_rows_than_the_context_holds_are_refused_before_patches_are_encoded(session, photo, monkeypatch):
    look, encoded = session.look(photo), []
    monkeypatch.setattr(session, "encode_high_many", lambda *_, **__: encoded.append(1))
    monkeypatch.setitem(session.language.spec, "context_length", 300)
    for ask in (lambda: look.ask("which?", rule="blocks", looks="all"), lambda: look.ask_many(["which?"], rule="blocks", looks="all")):
        with pytest.raises(InputError, match=r"the model's context holds 300.*fewer tokens="):
            ask()
    assert not encoded


def test_too_few_patches_for_a_block_are_said(session, photo):
    for tokens, says in ((1, "1 patches were asked for, too few"), (2, "no whole block"), (0, None)):
        answer = session.ask(photo, "which?", tokens=tokens, rule="blocks", max_tokens=1)
        notes = [note for note in answer.notes if "looked at" in note]
        assert not sum(map(len, answer.picked.values())) and ([says in note for note in notes] == [True] if says else not notes), (tokens, notes)


def test_the_data_sheet_names_every_network(session):
    text = ps3_sdk.bundle.describe(session.bundle)
    for word in ("project", "prompt_head", "decode", "vlm"):
        assert word in text
    assert all(stage["max_relative_error"] <= 1e-5 for stage in session.bundle.manifest["parity"].values())
    assert session.bundle.manifest["model"]["source"] == f"folder {session.bundle.manifest['model']['name']}", "the checkpoint, not its vision tower"
