"""What looking is trained with: many questions behind one frame, small frames of their own ring, questions of the hardest kind, captions."""
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ps3_sdk[export]'")

from ps3_sdk.training import nano
from ps3_sdk.training.answer import Frames
from ps3_sdk.training.captions import Captions
from ps3_sdk.training.examples import Cutter, make_example
from ps3_sdk.training.looking import Looking
from ps3_sdk.training.prefix import behind
from ps3_sdk.training.reading import Reader
from ps3_sdk.training.scenes import Scenes
from ps3_sdk.training.scenes.prompts import MOST


SMALL = nano.Sizes(vision_width=32, vision_depth=1, vision_heads=2, view_hidden=16, view_width=16, language_width=32, language_depth=2, language_heads=2, language_mlp=64)


def test_texts_behind_one_prefix_are_the_language_models_own_and_so_are_their_gradients(tmp_path):
    llm = nano.new_model(nano.write_folder(tmp_path / "model", SMALL)).llm
    torch.manual_seed(0)
    before, rows, of = torch.randn(2, 9, 32), torch.randn(5, 4, 32), torch.tensor([0, 0, 0, 1, 1])
    found = []
    for way in (lambda kv: behind(llm, kv, of, rows), lambda kv: llm(rows, [(k[of], v[of]) for k, v in kv])[0]):
        llm.zero_grad()
        hidden = way(llm(before)[1])
        hidden.square().sum().backward()
        found.append([hidden.detach(), *(p.grad.clone() for p in llm.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    assert all((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1) for ours, theirs in zip(*found))


def test_questions_that_are_solved_teach_less():
    from ps3_sdk.training.looking import EASY, missed
    prob, there = torch.tensor([0.99, 0.5, 0.01, 0.3]), torch.tensor([True, True, True, False])
    loss = torch.where(there, -prob.log(), 0.0).requires_grad_()
    missed(loss, there).backward()
    assert torch.allclose(loss.grad[:3], (EASY + 1 - prob[:3]) / 3) and missed(loss * 0, ~there & False) == 0


def test_questions_ask_for_the_furthest_as_often_as_they_should():
    scenes, far = Scenes(split="train", seed=5, fallback=True, frame_px=(540, 960)), [side.split()[0] for side in MOST.values()]
    scene = scenes[2]
    share = {}
    for furthest in (0.0, 1.0):
        rng = np.random.default_rng(0)
        prompts = [question.prompt for _ in range(40) for question in scenes.ask(rng, scene.domain, scene.items, furthest=furthest) if question.item is not None]
        share[furthest] = np.mean([any(word in prompt for word in far) for prompt in prompts])
    assert share[0.0] < 0.5 < share[1.0]


@pytest.mark.parametrize("small, sizes", [(True, [(2160, 3840), (1080, 1920), (1080, 1920)]), (False, [(2160, 3840)] * 3)])
def test_scenes_that_are_only_looked_at_may_be_small(monkeypatch, small, sizes):
    asked = []

    class Ring:
        def __init__(self, split, seed, size, uses, workers, frame_px, first, cutter, memory):
            asked.append((frame_px, first))
            self.frame_px = frame_px

        def next(self, count, questions):
            return [SimpleNamespace(frame_px=self.frame_px, questions=questions)] * count

        def close(self):
            asked.append("closed")

    monkeypatch.setattr("ps3_sdk.training.answer.Ring", Ring)
    frames = Frames(SimpleNamespace(small=small, looks=2, questions=5, seed=3, ring=4, uses=1, workers=1), 1, 10, 1, Cutter())
    examples = frames.next()
    frames.close()
    assert [example.frame_px for example in examples] == sizes and {example.questions for example in examples} == {5}
    rings = [each for each in asked if each != "closed"]
    assert len(set(rings)) == len(rings) == asked.count("closed") == (2 if small else 1)


def test_where_nothing_is_answered_one_ring_serves(monkeypatch):
    made = []
    monkeypatch.setattr("ps3_sdk.training.answer.Ring", lambda *given: made.append(given) or SimpleNamespace(close=lambda: None))
    for small in (True, False):
        Frames(SimpleNamespace(small=small, looks=2, questions=5, seed=3, ring=4, uses=1, workers=1), 0, 10, 0, Cutter()).close()
    assert [given[5] for given in made] == [(1080, 1920), (2160, 3840)]


def test_things_come_to_be_told_by_their_captions():
    torch.manual_seed(0)
    captions = Captions(16, 8)
    places = torch.eye(9, dtype=torch.bool)
    boxes = [places[:4], torch.cat([places[4:6], places[6:8].any(dim=0, keepdim=True)])]       # seven things in two scenes, the last of two places
    names = ["red sign", "blue sign", "red cup", "blue cup", "red sign", "red cup", "blue cup"]
    looks = dict(zip(sorted(set(names)), torch.randn(4, 16)))
    features, words = torch.randn(2, 9, 16), torch.randn(7, 8)
    for scene, own, count in ((0, names[:4], 0), (1, names[4:], 4)):
        for n, name in enumerate(own):
            features[scene, torch.nonzero(boxes[scene][n])[:, 0]] = looks[name]
    optimiser, losses = torch.optim.Adam(captions.parameters(), 3e-2), []
    for _ in range(60):
        loss, right = captions(features, boxes, words, names)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0] and right.all()
    swapped = captions(features, boxes, words, [names[1], names[0], *names[2:]])[0]
    assert swapped > 2 * losses[-1]         # it is these captions that it has learnt


def test_captions_name_kind_and_colour_and_a_scene_has_one_for_each_thing(tmp_path):
    scenes = Scenes(split="train", seed=5, fallback=True, frame_px=(540, 960))
    scene = scenes[2]
    captions = scenes.captions(np.random.default_rng(0), scene.domain, scene.items)
    example = make_example(scene, np.random.default_rng(0), 4, captions=captions)
    assert [name for _, name in captions] == [f"{item.colour} {item.kind}" for item in scene.items]
    assert all(item.colour in words.split() for (words, _), item in zip(captions, scene.items))
    assert example.boxes.shape == (len(scene.items), 729) and example.boxes.any(dim=1).all()
    model = nano.new_model(nano.write_folder(tmp_path / "model", SMALL))
    losses = {}
    for name, some in (("with", example), ("without", make_example(scene, np.random.default_rng(0), 4))):
        found = Looking(model, Reader(model.vision.vision_model)).find([some])
        losses[name] = float(found.losses["captions"].detach()), float(found.measures["told"])
    assert losses["with"][0] > 0 and 0 <= losses["with"][1] <= 1 and losses["without"][0] == 0 and np.isnan(losses["without"][1])
