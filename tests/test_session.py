"""What Session promises: the answer's parts, reuse of a look, budgets, and clear refusals of bad input."""
import os
import threading

import numpy as np
import pytest

import ps3_sdk
from conftest import ROOT
from ps3_sdk import _core, errors

HIGH = {756: 54, 1512: 108, 3780: 270}


def test_ask_runs_every_stage_on_a_real_photograph(session, photo_path):
    answer = session.ask(photo_path, "the name plate of a boat")
    assert list(answer.timing.stages_ms) == ["encode_low", "encode_prompt", "score", "select", "gather", "encode_high"]
    assert {px: len(ids) for px, ids in answer.picked.items()} == {756: 85, 1512: 341, 3780: 2133}
    assert answer.frame_size == (2160, 3840) and answer.prob.shape == (27, 27)
    assert answer.regions and all(0 <= x0 < x1 <= 3840 and 0 <= y0 < y1 <= 2160 for x0, y0, x1, y1 in (region.box_px for region in answer.regions))
    assert any("random" in note for note in answer.notes)


def test_what_is_picked_is_the_best_of_the_map(session, photo):
    encoding = session.encode(photo, "a boat")
    for px, ids in encoding.picked.items():
        prob = encoding.prob_at(px).reshape(-1)
        assert np.all(np.diff(ids) > 0)
        assert prob[ids].min() >= np.delete(prob, ids).max()


def test_look_shares_the_low_res_pass(session, photo):
    look = session.look(photo)
    first, second = look.ask("a boat"), look.ask("the sky")
    assert first.timing.stages_ms["encode_low"] == second.timing.stages_ms["encode_low"] == look.timing.stages_ms["encode_low"]
    assert np.array_equal(first.prob, session.ask(photo, "a boat").prob)
    assert not np.array_equal(first.prob, second.prob)


def test_encode_returns_ps3s_own_output(session, photo):
    encoding = session.encode(photo, "a boat", tokens=100)
    picked = sum(len(ids) for ids in encoding.picked.values())
    assert encoding.tokens.dtype == np.float32 and encoding.tokens.shape == (729 + picked, session.geometry["width"])
    assert 97 <= picked <= 100
    maps = encoding.feature_maps()
    assert {px: value.shape[1:] for px, value in maps.items()} == {378: (27, 27), 756: (54, 54), 1512: (108, 108), 3780: (270, 270)}
    start = 729
    for px, ids in encoding.picked.items():
        flat = maps[px].reshape(maps[px].shape[0], -1)
        assert np.array_equal(flat[:, ids].T, encoding.tokens[start:start + len(ids)])
        assert not flat[:, np.setdiff1d(np.arange(flat.shape[1]), ids)].any()
        start += len(ids)


def test_two_looks_take_different_patches_and_keep_each_looks_tokens(session, photo):
    one, two = session.encode(photo, "a boat", looks=1), session.encode(photo, "a boat", looks=2)
    offset_one = offset_two = 729
    for px in HIGH:
        assert len(two.picked[px]) == len(np.unique(two.picked[px])) == 2 * len(one.picked[px])
        shared = np.isin(two.picked[px], one.picked[px])
        assert shared.sum() == len(one.picked[px])
        first = two.tokens[offset_two:offset_two + len(shared)][shared]     # looks do not see each other
        assert np.allclose(first, one.tokens[offset_one:offset_one + len(one.picked[px])], atol=1e-4)
        offset_one, offset_two = offset_one + len(one.picked[px]), offset_two + len(shared)


def test_every_pixel_format_of_one_picture_gives_the_same_answer(session, photo):
    rgb = session.ask(photo, "a boat", tokens=64)
    bgr = session.ask(np.ascontiguousarray(photo[..., ::-1]), "a boat", tokens=64, format="BGR")
    rgba = session.ask(np.dstack([photo, np.zeros(photo.shape[:2], np.uint8)]), "a boat", tokens=64)
    padded = np.zeros((2160, 4000, 3), np.uint8)
    padded[:, :3840] = photo
    for other in (bgr, rgba, session.ask(padded[:, :3840], "a boat", tokens=64)):
        assert np.array_equal(rgb.prob, other.prob)


def test_choices_are_ranked_by_similarity(session, photo):
    answer = session.ask(photo, "the boat", choices=["red", "green", "blue"], tokens=64)
    assert {choice.text for choice in answer.choices} == {"red", "green", "blue"}
    assert [c.similarity for c in answer.choices] == sorted((c.similarity for c in answer.choices), reverse=True)
    assert answer.text == answer.choices[0].text
    assert "decode" in answer.timing.stages_ms


def test_several_frames_are_asked_each_by_itself(session, seeded, photo):
    flipped = np.ascontiguousarray(photo[:, ::-1])
    answers = session.ask_frames([photo, session.look(flipped)], "a boat", tokens=64)
    assert np.array_equal(answers[0].prob, session.ask(photo, "a boat", tokens=64).prob)
    assert np.array_equal(answers[1].prob, session.ask(flipped, "a boat", tokens=64).prob)
    with ps3_sdk.Session(seeded) as other, pytest.raises(errors.InputError, match="another session"):
        other.ask_frames([session.look(photo)], "a boat")
    for wrong in ([], photo, None):
        with pytest.raises(errors.InputError, match="frames is"):
            session.ask_frames(wrong, "a boat")


def test_texts_and_frames_are_embedded_for_comparison(session, photo):
    texts = session.encode_text(["red", "green"])
    frame = session.encode_frame(photo, "the boat", tokens=64)
    assert texts.shape == (2, session.geometry["pooled_width"]) and np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    choices = {choice.text: choice.similarity for choice in session.ask(photo, "the boat", tokens=64, choices=["red", "green"]).choices}
    assert texts @ frame == pytest.approx([choices["red"], choices["green"]], abs=1e-6)
    assert not np.allclose(frame, session.encode_frame(photo, "the boat", tokens=0))
    for wrong in ([], [""], [7]):
        with pytest.raises(errors.InputError, match="texts"):
            session.encode_text(wrong)


def test_empty_prompt_is_bottom_up(session, photo):
    answer = session.ask(photo, "  ", tokens=16)
    assert any("bottom-up" in note for note in answer.notes)
    assert not np.array_equal(answer.prob, session.ask(photo, "a boat", tokens=16).prob)


def test_prompt_of_ten_thousand_words_is_cut_and_said_so(session, photo):
    answer = session.ask(photo, "boat " * 10_000, tokens=16)
    assert any("reads the first" in note for note in answer.notes)


def test_budget_of_zero_is_low_res_only(session, photo):
    encoding = session.encode(photo, "a boat", tokens=0)
    assert len(encoding.tokens) == 729 and all(len(ids) == 0 for ids in encoding.picked.values())
    assert session.ask(photo, "a boat", tokens=0).regions == []


def test_budget_above_all_patches_is_clamped_and_said_so(session):
    plan = session.budget(10**6)
    assert plan.num_patches == sum(n * n for n in HIGH.values())
    assert "1000000" in plan.notes[0]


@pytest.mark.parametrize("arguments, wanted", [
    (dict(tokens=100, scales=1), [[100, 0, 0]]), (dict(tokens=100, scales=2), [[19, 80, 0]]), (dict(looks=1, scales=1), [[2559, 0, 0]]),
    (dict(tokens=3000, scales=1), [[2559, 0, 0], [357, 0, 0]]), (dict(looks=2, scales=3), [[85, 341, 2133]] * 2), (dict(tokens=1, scales=1), [[1, 0, 0]]),
])
def test_fewer_scales_share_the_budget(session, arguments, wanted):
    assert session.budget(**arguments).looks == wanted


@pytest.mark.parametrize("arguments, says", [
    (dict(tokens=-1), "tokens is -1"), (dict(tokens=1.5), "tokens is 1.5"), (dict(tokens=True), "tokens is True"),
    (dict(looks=-2), "looks is -2"), (dict(looks="many"), "looks is 'many'"), (dict(tokens=5, looks=1), "both given"), (dict(scales=4), "scales is 4"),
])
def test_bad_budgets_are_refused(session, photo, arguments, says):
    with pytest.raises(errors.BudgetError, match=says):
        session.ask(photo, "a boat", **arguments)


@pytest.mark.parametrize("frame, says", [
    (np.zeros((10, 10, 3), np.float32), "float32"), (np.zeros((2, 10, 10, 3), np.uint8), "shape"), (np.zeros((0, 10, 3), np.uint8), "no pixel"),
    (np.zeros((10, 10, 3), np.uint8)[::-1], "negative strides"), ("no/such/frame.jpg", "no/such/frame.jpg"), (b"not a picture", "picture"), (None, "NoneType"), (7, "int"),
])
def test_bad_frames_are_refused(session, frame, says):
    with pytest.raises(errors.InputError, match=says):
        session.ask(frame, "a boat")


def test_a_frame_of_one_pixel_is_answered(session):
    answer = session.ask(np.full((1, 1, 3), 200, np.uint8), "a boat", tokens=32)
    assert np.isfinite(answer.prob).all() and all(region.box_px == (0, 0, 1, 1) for region in answer.regions)


@pytest.mark.parametrize("vector, says", [
    (np.full(48, np.nan, np.float32), "48 NaN"), (np.zeros(7, np.float32), r"\(7,\)"), (np.zeros(48, np.int64), "int64"), ("text", "<U4"),
    (np.full(48, 1e20, np.float32), r"reaches 1e\+20; numbers of at most 1e\+15.*scale it to length 1"),
])
def test_bad_prompt_embeddings_are_refused(session, photo, vector, says):
    assert session.geometry["width"] == 48, "the seeded encoder's width is written into this test"
    with pytest.raises(errors.InputError, match=says):
        session.encode(photo, prompt_embedding=vector)


def test_a_prompt_embedding_replaces_the_text(session, photo):
    vector = session.encode_prompt("a boat").vector
    assert np.array_equal(session.encode(photo, prompt_embedding=vector, tokens=8).prob, session.encode(photo, "a boat", tokens=8).prob)


def test_numbers_of_numpy_are_numbers(session, photo):
    one, other = (session.ask(photo, "a boat", tokens=tokens, scales=scales) for tokens, scales in ((8, 2), (np.int64(8), np.int32(2))))
    assert {px: ids.tolist() for px, ids in one.picked.items()} == {px: ids.tolist() for px, ids in other.picked.items()}


@pytest.mark.parametrize("texts", [5, None, [], ["a", ""], [7]])
def test_texts_that_are_none_are_refused(session, texts):
    with pytest.raises(errors.InputError, match="texts is"):
        session.encode_text(texts)


def test_what_is_of_answers_in_words_is_noted_where_none_come(session, photo):
    answer = session.ask(photo, "a boat", tokens=8, on_text=print, cancel=lambda: False)
    assert any(note.startswith("cancel, on_text: for answers in words; here none comes") for note in answer.notes)
    assert not any("in words" in note for note in session.ask(photo, "a boat", tokens=8).notes)
    with pytest.raises(errors.InputError, match="look_again is 0.5.*no language model"):
        session.ask(photo, "a boat", tokens=8, look_again=0.5)


def test_what_is_told_pieces_of_text_is_a_function(session, photo):
    look = session.look(photo)
    for ask in (lambda: session.ask(photo, "a boat", on_text=5), lambda: look.ask("a boat", on_text=5), lambda: session.ask_frames([look], "a boat", on_text=5)):
        with pytest.raises(errors.InputError, match="on_text is int"):
            ask()


def test_what_is_no_path_is_no_bundle():
    with pytest.raises(errors.BundleError, match="5 is no path"):
        ps3_sdk.Session(5)


@pytest.mark.parametrize("prompt", [7, None, b"a boat", ["a boat"]])
def test_prompts_that_are_no_text_are_refused(session, photo, prompt):
    with pytest.raises(errors.InputError, match="must be a str"):
        session.ask(photo, prompt)


@pytest.mark.parametrize("choices", ["red", [], ["red", ""], [1], 5])
def test_bad_choices_are_refused(session, photo, choices):
    with pytest.raises(errors.InputError, match="choices"):
        session.ask(photo, "a boat", choices=choices, tokens=8)


def test_two_threads_may_ask_one_session(session, photo):
    prompts = ["a boat", "the sky", "water", "a plate"]
    alone = {prompt: session.ask(photo, prompt, tokens=200) for prompt in prompts}
    together = {}
    threads = [threading.Thread(target=lambda prompt=prompt: together.update({prompt: session.ask(photo, prompt, tokens=200)})) for prompt in prompts]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for prompt in prompts:
        assert np.array_equal(alone[prompt].prob, together[prompt].prob)
        assert all(np.array_equal(alone[prompt].picked[px], together[prompt].picked[px]) for px in HIGH)


def test_a_closed_session_says_so(seeded, photo):
    session = ps3_sdk.Session(seeded)
    look = session.look(photo)
    session.close()
    session.close()
    for call in (lambda: session.ask(photo, "a boat"), lambda: look.ask("a boat"), lambda: session.encode_prompt("x")):
        with pytest.raises(errors.ClosedError, match="closed"):
            call()


def test_a_look_cuts_both_of_its_inputs_in_one_call(photo, monkeypatch):
    cut, gather_parts = [], _core.gather_parts
    monkeypatch.setattr(_core, "gather_parts", lambda frame, base_px, parts, *more: cut.append([part[:2] for part in parts]) or gather_parts(frame, base_px, parts, *more))
    with ps3_sdk.Session() as session:
        session.look(photo)
        session.encode_low(ps3_sdk.Frame.of(photo))
    assert cut == [[(378, 14), (1512, 28)], [(378, 14)]]


def test_a_session_that_is_closed_while_it_is_asked_says_so(seeded, photo, monkeypatch):
    for stage in ("score", "gather_many", "encode_high_many"):
        session = ps3_sdk.Session(seeded)
        look, work = session.look(photo), getattr(session, stage)

        def close_under(*arguments, stage=work, session=session, **options):
            session.close()
            return stage(*arguments, **options)
        monkeypatch.setattr(session, stage, close_under)
        with pytest.raises(errors.ClosedError, match="closed; open a new one"):
            look.ask("a boat", tokens=8)
    with ps3_sdk.Session(seeded) as session, pytest.raises(ZeroDivisionError), session.running():
        1 / 0


@pytest.mark.parametrize("threads", [-1, 1.5, True, 10_000])
def test_bad_thread_counts_are_refused(threads):
    with pytest.raises(errors.InputError, match="threads"):
        ps3_sdk.Session(threads=threads)


def test_a_missing_runtime_package_names_what_to_install(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(errors.RuntimeMissingError, match="pip install onnxruntime"):
        ps3_sdk.Session()


def test_a_networks_threads_do_not_keep_the_cores_from_the_next_network(seeded, monkeypatch):
    import onnxruntime
    opened, make = [], onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda model, options, **more: opened.append(options) or make(model, options, **more))
    with ps3_sdk.Session(seeded):
        assert opened and all(options.get_session_config_entry("session.intra_op.allow_spinning") == "0" for options in opened)


def test_onnx_runtimes_telemetry_is_off(tmp_path):
    """It keeps a device's id and a queue in the user's cache."""
    import subprocess
    import sys
    ask = f"import ps3_sdk; ps3_sdk.Session().ask({str(ROOT / 'examples' / 'frames' / 'panel_4k.jpg')!r}, 'x', tokens=0)"
    clean = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", ask], env={**clean, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}, cwd=tmp_path, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("how", ["session.close()", "del session; gc.collect()", "pass"])
def test_a_forked_process_may_forget_the_session(how, tmp_path):
    """The networks' threads are not there in the child, and what ends them would wait for ever."""
    import subprocess
    import sys
    frame = str(ROOT / "examples" / "frames" / "panel_4k.jpg")
    program = f"""
import gc, os, signal, sys, ps3_sdk
session = ps3_sdk.Session(threads=2)
session.ask({frame!r}, "x", tokens=0)
child = os.fork()
if not child:
    signal.alarm(20)
    {how}
    print("ended", flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert session.ask({frame!r}, "x", tokens=0).text
session.close()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "ended" in done.stdout, done.stderr
