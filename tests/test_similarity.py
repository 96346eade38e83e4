"""Regions beside texts, pooled as in training; and the two options of what is picked: selection and smooth."""
import numpy as np
import pytest

from ps3_sdk import errors
from ps3_sdk.probability import certain, smoothed, touched


def test_regions_of_a_prompt_beside_texts(session, photo):
    look = session.look(photo)
    found, answer = look.similarity(["a boat", "the sky"], "a boat", tokens=300), look.ask("a boat", tokens=300)
    assert found.regions == answer.regions and found.texts == ["a boat", "the sky"]
    assert found.cosine.shape == (len(found.regions), 2) and np.abs(found.cosine).max() <= 1 + 1e-6
    assert np.allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-6)
    assert np.allclose(found.cosine, found.features @ session.encode_text(found.texts).T, atol=1e-6)
    assert found.best() == [found.texts[i] for i in found.cosine.argmax(axis=1)]
    assert found.prob is None or ((found.prob > 0) & (found.prob < 1)).all()


def test_the_whole_frame_as_a_box_is_the_pooled_feature_of_a_look(session, photo):
    look = session.look(photo)
    found = look.similarity("a boat", boxes=[(0, 0, 3840, 2160)], tokens=120)
    n = 54
    assert certain(look.encode(tokens=0).prob, n, (0, 0, 3840, 2160), (2160, 3840)).min() == 1
    assert found.regions[0].num_patches == sum(map(len, look.encode(tokens=120).picked.values()))
    assert found.cosine.shape == (1, 1)


def test_a_box_is_looked_at_before_anything_else(session, photo):
    box = (1000.0, 500.0, 1300.0, 700.0)
    found = session.look(photo).similarity(["a", "b"], boxes=[box, (0, 0, 64, 64)], tokens=200, batch=2)
    assert [region.box_px for region in found.regions] == [box, (0, 0, 64, 64)]
    assert found.regions[0].num_patches > 100 and found.regions[0].scale_px == 3780 and 0 < found.regions[0].prob < 1
    alone = session.look(photo).similarity(["a", "b"], boxes=[box], tokens=200)
    assert np.allclose(found.cosine[0], alone.cosine[0], atol=1e-5)


def test_a_budget_of_nothing_compares_low_res_tokens(session, photo):
    look = session.look(photo)
    assert look.similarity("a", tokens=0).regions == [] and look.similarity("a", tokens=0).cosine.shape == (0, 1)
    found = look.similarity("a", boxes=[(0, 0, 99, 99)], tokens=0)
    assert np.allclose(found.features[0], session.encode_frame(photo, tokens=0), atol=1e-6) and found.regions[0].num_patches == 0


@pytest.mark.parametrize("boxes", [[], 5, "box", [(1, 2, 3)], [(5, 5, 5, 9)], [(9, 0, 3, 9)], [(0, 0, 3841, 9)], [(-1, 0, 3, 9)], [(0, 0, float("nan"), 9)]])
def test_boxes_that_cannot_be_used(session, photo, boxes):
    with pytest.raises(errors.InputError, match=r"boxes"):
        session.look(photo).similarity("a", boxes=boxes, tokens=8)


def test_cells_that_a_box_touches():
    assert np.argwhere(touched((10, 0, 20, 10), (40, 40), 4)).tolist() == [[0, 1]]      # edges that only meet do not touch
    assert touched((9.99, 0, 20.01, 10), (40, 40), 4)[0].tolist() == [True, True, True, False]
    assert touched((0, 0, 80, 40), (40, 80), 3).all() and touched((0.1, 0.1, 0.2, 0.2), (40, 80), 3).sum() == 1


# -- beside the reference -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny encoder's folder and a session of its bundle."""
    pytest.importorskip("torch", reason="needs ps3_sdk[export]")
    pytest.importorskip("onnx", reason="needs ps3_sdk[export]")
    import ps3_sdk
    import tiny_models
    from ps3_sdk.export.export_checkpoint import export_checkpoint
    place = tmp_path_factory.mktemp("tiny")
    folder = tiny_models.write(place / "model", tiny_models.config("siglip", "1.5k"))
    export_checkpoint(str(folder), place / "engine.plan")
    with ps3_sdk.Session(place / "engine.plan") as session:
        yield folder, session


def test_a_boxs_feature_is_the_one_training_compares_with_its_caption(tiny):
    """The reference, which is compared live with ps3-torch, with gt_selection_maps and pool_gt_token_only."""
    import torch
    from ps3_sdk.export.reference.model import Ps3Model
    folder, session = tiny
    model, base, box = Ps3Model.from_checkpoint(folder), session.base_px, (280, 420, 1036, 854)
    frame = np.random.default_rng(5).integers(0, 256, (base, base, 3), np.uint8)
    pixels = torch.from_numpy((frame.transpose(2, 0, 1)[None] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).float()
    given = torch.zeros(1, base, base)
    given[:, box[1]:box[3], box[0]:box[2]] = 1
    look = session.look(frame)
    with torch.inference_mode():
        theirs = model.forward_pooled(pixels, given=given, pool_given_only=True).pooled[0]
    found = look.similarity("a boat", boxes=[box])
    assert np.abs(found.features[0] - (theirs / theirs.norm()).numpy()).max() <= 1e-5


@pytest.mark.parametrize("n", [48, 54])
def test_smoothing_is_the_references(n):
    torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
    from ps3_sdk.export.reference.scoring import spread
    prob = np.random.default_rng(0).random((n // 2, n // 2), np.float32)
    for size, wanted in zip((n, 2 * n, 5 * n), spread(torch.from_numpy(prob)[None].double(), [(n, n), (2 * n, 2 * n), (5 * n, 5 * n)], smooth=True)):
        ours = smoothed(prob, n)
        index = np.arange(size) * n // size
        assert np.abs(ours[np.ix_(index, index)] - wanted[0].numpy()).max() <= 1e-6
        assert len(np.unique(ours)) == 36


# -- selection and smooth ---------------------------------------------------------------------------------------------

def test_smooth_picks_by_areas(session, photo):
    look = session.look(photo)
    plain, smooth = look.encode("a boat", tokens=300), look.encode("a boat", tokens=300, smooth=True)
    assert smooth.prob.shape == (54, 54) and np.array_equal(smooth.prob, smoothed(plain.prob, 54))
    assert any(not np.array_equal(plain.picked[px], smooth.picked[px]) for px in plain.picked)
    for px, ids in smooth.picked.items():
        prob = smooth.prob_at(px).reshape(-1)
        assert prob[ids].min() >= np.delete(prob, ids).max()
    assert smooth.feature_maps()[378].shape[1:] == (27, 27)
    answer = session.ask(photo, "a boat", tokens=300, smooth=True)
    assert all(np.array_equal(answer.picked[px], smooth.picked[px]) for px in answer.picked) and answer.regions


def test_bottom_up_ignores_the_prompt_and_says_so(session, photo):
    look = session.look(photo)
    asked, empty = look.ask("a boat", tokens=100, selection="bottom_up"), look.ask("", tokens=100)
    assert asked.prompt == "a boat" and np.array_equal(asked.prob, empty.prob) and any("as asked" in note for note in asked.notes)
    assert np.array_equal(look.ask("a boat", tokens=100, selection="top_down").prob, look.ask("a boat", tokens=100).prob)
    assert len(look.ask_many(["a", "b"], tokens=9, selection="bottom_up")) == 2


@pytest.mark.parametrize("options, words", [
    (dict(prompt="a", selection="up"), "selection is 'up'"), (dict(prompt=" ", selection="top_down"), "nothing to look for"), (dict(prompt="a", smooth=1), "smooth is 1"),
    (dict(prompt_embedding=np.zeros(48, np.float32), selection="bottom_up"), "Pass one of them"),
])
def test_options_that_contradict(session, photo, options, words):
    with pytest.raises(errors.InputError, match=words):
        session.ask(photo, **options, tokens=8)
