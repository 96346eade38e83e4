"""Places say which kind of thing they are of; a wider view network goes on saying what the old one said."""
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ps3_sdk[export]'")

from ps3_sdk.errors import InputError
from ps3_sdk.export.reference.scoring import ViewNet
from ps3_sdk.training import answer, closely, looking, nano, view
from ps3_sdk.training.closely import Closely
from ps3_sdk.training.examples import make_example
from ps3_sdk.training.looking import Looking
from ps3_sdk.training.reading import Reader
from ps3_sdk.training.scenes import Scenes
from ps3_sdk.training.state import HEADS, copy_heads, load_heads, save_heads
from ps3_sdk.training.things import NAMES, Things, labels_of
from test_training_looking import SMALL


@pytest.fixture(scope="module")
def scenes():
    return Scenes(split="train", seed=5, fallback=True, frame_px=(540, 960))


def examples_of(scenes, count):
    rng = np.random.default_rng(0)
    return [make_example(scene, rng, 4, captions=scenes.captions(rng, scene.domain, scene.items)) for scene in (scenes[i] for i in range(count))]


def test_labels_are_the_kind_and_the_colour_of_what_covers_a_place(scenes):
    example, = examples_of(scenes, 1)
    kinds, colours = labels_of([example], 27)[0].numpy()
    covered = example.boxes.numpy().any(axis=0)
    assert covered.any() and not covered.all() and (kinds[~covered] == 0).all() and (colours[~covered] == 0).all()
    for item, box in zip(scenes[0].items, example.boxes.numpy()):
        alone = box & (example.boxes.numpy().sum(axis=0) == 1)
        assert alone.any() and {NAMES[0][k - 1] for k in kinds[alone]} == {item.kind} and {NAMES[1][c - 1] for c in colours[alone]} == {item.colour}


@pytest.mark.parametrize("grid", [54, 108])
def test_of_finer_grids_the_places_are_labelled_whose_middle_a_thing_covers(scenes, grid):
    example, = examples_of(scenes, 1)
    kinds = labels_of([example], grid)[0, 0].view(grid, grid).numpy()
    wanted = np.zeros((grid, grid), int)
    for item in scenes[0].items:
        x0, y0, x1, y1 = np.array(item.box_px) * np.array([grid / 960, grid / 540] * 2)
        for row in range(grid):
            for column in range(grid):
                if y0 <= row + 0.5 < y1 and x0 <= column + 0.5 < x1:
                    wanted[row, column] = NAMES[0].index(item.kind) + 1
    assert wanted.any() and np.array_equal(kinds, wanted)


@pytest.mark.parametrize("side", [27, 54])
def test_things_come_to_be_told_from_one_another_and_from_none(side):
    """Of features with a direction for each kind, in the grid of the low-res pass and in that of the view."""
    torch.manual_seed(0)
    things, labels = Things(24), torch.zeros(2, 2, 729, dtype=torch.int64)
    labels[0, :, 30:33] = torch.tensor([[3], [1]])
    labels[1, :, 700:702] = torch.tensor([[7], [2]])
    directions = torch.randn(8, 24)
    labels = labels.unflatten(2, (27, 27)).repeat_interleave(side // 27, 2).repeat_interleave(side // 27, 3).flatten(2)
    features = directions[labels[:, 0]]
    optimiser, losses = torch.optim.Adam(things.parameters(), 3e-2), []
    for _ in range(40):
        loss, told = things(features, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0] and told == 1
    assert things(features.flip(0), labels)[0] > 10 * losses[-1], "it is these places that it has learnt"
    assert torch.isnan(things(features, labels * 0)[1])


def test_a_view_network_of_twice_the_channels_begins_with_what_the_old_one_says(tmp_path, scenes):
    model = nano.new_model(nano.write_folder(tmp_path / "model", SMALL), seed=3)
    old = model.vision.vision_model.highres_selection_feature_module
    new = ViewNet(dataclasses.replace(model.config.vision, view_hidden_width=2 * SMALL.view_hidden))
    views = torch.stack([example.view for example in examples_of(scenes, 2)])
    off = {}
    for share in (0.0, 0.1, 2.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(view, "NEW", share)
            view.widen(new, old, views.flatten(0, 1))
        with torch.no_grad():
            wanted = old(views)
            off[share] = float(((new(views) - wanted) ** 2).mean() / wanted.var())
        filters = new.stem[0].weight.detach().flatten(1)
        blind = filters[SMALL.view_hidden:] - filters[:SMALL.view_hidden]
        assert torch.linalg.matrix_rank(filters) == (SMALL.view_hidden if share == 0 else 2 * SMALL.view_hidden)
        assert (blind @ filters[:SMALL.view_hidden].T).abs().max() < 1e-3 * max(1e-3, float(filters.norm()) ** 2)
    assert off[0.0] < 1e-9 < off[0.1] < off[2.0]


def test_the_wider_folder_is_the_old_one_but_for_the_channels(tmp_path):
    source = nano.write_folder(tmp_path / "from", SMALL)
    view.begin_folder(source, tmp_path / "to", 2)
    view.begin_folder(source, tmp_path / "to", 2)       # to go on, nothing changes
    name = "vision_tower/config.json"
    read = lambda folder: json.loads((folder / name).read_text("utf-8"))
    assert read(tmp_path / "to") == read(source) | {"highres_selection_module_hidden_dim": 2 * SMALL.view_hidden}
    assert all((tmp_path / "to" / path.relative_to(source)).read_bytes() == path.read_bytes() for path in source.rglob("*.json") if str(path.relative_to(source)) != name)
    with pytest.raises(InputError, match="another training"):
        view.begin_folder(tmp_path / "to", tmp_path / "to", 2)


@pytest.mark.parametrize("options", (["--twice", "--lr", "0.1"], ["--lr", "0"]), ids=("wider", "as wide"))
def test_a_view_is_trained_and_the_rest_of_the_checkpoint_stays(tmp_path, scenes, monkeypatch, options, capsys):
    source, run = nano.write_folder(tmp_path / "from", SMALL), tmp_path / "run"
    old = nano.new_model(source, seed=4)
    nano.save(old, source)
    save_heads(source, captions=torch.nn.Linear(2, 3), reading=Reader(old.vision.vision_model).own)
    examples = examples_of(scenes, 2)
    monkeypatch.setattr(view, "Ring", lambda *given, **options: SimpleNamespace(next=lambda count: examples, close=lambda: None))
    monkeypatch.setattr(view, "held_out_examples", lambda: examples)
    monkeypatch.setattr("sys.argv", ["view", str(source), str(run), "--seconds", "1.5", *options])
    view.main()
    new = nano.new_model(run / "model")
    nano.load(new, run / "model")
    for (name, value), (_, was) in zip(new.state_dict().items(), old.state_dict().items()):
        assert view.NAME in name and "--twice" in options or torch.equal(value, was.half().float()), name
    log = [json.loads(line) for line in (run / "view/log.jsonl").read_text().splitlines()]
    assert log[-1]["val_off"] < 0.5 and 0 <= log[-1]["val_kind"] <= 1
    kept = torch.nn.Linear(2, 3)
    before = kept.weight.clone()
    load_heads(run / "model", captions=kept, things=Things(SMALL.view_width))
    assert not torch.equal(kept.weight, before), "heads of other parts come along"
    capsys.readouterr()
    assert load_heads(source, captions=kept, other=torch.nn.Linear(2, 3)) == {"other"}
    assert capsys.readouterr().out.count("has no head") == 1


def test_looking_teaches_view_and_trunk_which_kind_each_place_is_of(tmp_path, scenes, monkeypatch):
    model = nano.new_model(nano.write_folder(tmp_path / "model", SMALL))
    module, example = Looking(model, Reader(model.vision.vision_model)), examples_of(scenes, 1)
    gradients = {}
    for weight in (0.0, 0.3):
        monkeypatch.setattr(looking, "THINGS", weight)
        monkeypatch.setattr(looking, "LOW_THINGS", weight)
        loss, measures = module.search(example)
        loss.backward()
        vision = model.vision.vision_model
        gradients[weight] = vision.highres_selection_feature_module.out_proj.weight.grad.clone(), vision.trunk.patch_embed.proj.weight.grad.clone()
        module.zero_grad()
    assert measures["things"] > 0 and measures["low_things"] > 0 and 0 <= measures["kind"] <= 1 and 0 <= measures["low_kind"] <= 1
    for learnt, other in zip(gradients[0.3], gradients[0.0]):
        assert (learnt - other).norm() > 1e-3 * other.norm()


def test_close_looks_teach_the_trunk_which_kind_their_patches_are_of(tmp_path, scenes, monkeypatch):
    model = nano.new_model(nano.write_folder(tmp_path / "model", SMALL))
    module, example = Closely(model, Reader(model.vision.vision_model)), examples_of(scenes, 1)
    gradients, found = {}, []
    forward = module.high_things.forward
    module.high_things.forward = lambda features, labels: found.append((features, labels)) or forward(features, labels)
    cells = []
    monkeypatch.setattr(module, "cells", lambda wanted: cells.append(np.sort(np.argpartition(-wanted, 4)[:4])) or cells[-1])
    for weight, fresh in ((0.0, set()), (0.3, set()), (0.3, {"high_things"})):
        monkeypatch.setattr(closely, "HIGH_THINGS", weight)
        module.fresh = fresh
        torch.manual_seed(0)
        loss, measures = module(example, np.random.default_rng(0))
        loss.backward()
        gradients[weight, len(fresh)] = model.vision.vision_model.trunk.patch_embed.proj.weight.grad.clone()
        assert (module.high_things.heads[0].weight.grad.abs().max() > 0) == (weight > 0), "a fresh head learns itself"
        module.zero_grad()
    assert measures["high_things"] > 0 and "high_kind" in measures
    assert (gradients[0.3, 0] - gradients[0.0, 0]).norm() > 1e-3 * gradients[0.0, 0].norm()
    assert torch.allclose(gradients[0.3, 1], gradients[0.0, 0], rtol=1e-4, atol=1e-7)
    features, labels = found[0]
    assert features.shape[1] == labels.shape[2] == 4 * 16, "each of the 1512 px patches"
    shown = labels_of(example, 108)[0, 0].view(27, 4, 27, 4).transpose(1, 2).reshape(729, 16)
    looks = np.stack(cells[:len(features)])
    for look, own in zip(looks, labels):
        assert sorted(own[0].tolist()) == sorted(shown[look].flatten().tolist())


def test_what_a_fresh_head_sees_does_not_learn_from_it(tmp_path, scenes, monkeypatch):
    model = nano.new_model(nano.write_folder(tmp_path / "model", SMALL))
    module, example = Looking(model, Reader(model.vision.vision_model)), examples_of(scenes, 1)
    gradients = {}
    for weight, fresh in ((0.0, set()), (0.3, {"things", "low_things"})):
        monkeypatch.setattr(looking, "THINGS", weight)
        monkeypatch.setattr(looking, "LOW_THINGS", weight)
        module.fresh = fresh
        module.search(example)[0].backward()
        gradients[weight] = [model.vision.vision_model.get_parameter(name).grad.clone() for name in ("highres_selection_feature_module.out_proj.weight", "trunk.patch_embed.proj.weight")]
        assert (module.things.heads[0].weight.grad.abs().max() > 0) == (module.low_things.heads[1].weight.grad.abs().max() > 0) == (weight > 0)
        module.zero_grad()
    for one, other in zip(*gradients.values()):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_heads_lie_beside_the_weights_and_others_stay(tmp_path):
    first, second = Things(8), torch.nn.Linear(3, 2)
    save_heads(tmp_path, things=first)
    save_heads(tmp_path, captions=second)
    fresh, other = Things(8), torch.nn.Linear(3, 2)
    load_heads(tmp_path, things=fresh, captions=other)
    assert torch.equal(fresh.heads[1].weight, first.heads[1].weight) and torch.equal(other.weight, second.weight)
    before = other.bias.clone()
    load_heads(tmp_path / "nowhere", captions=other)
    load_heads(tmp_path, more=other)
    assert torch.equal(other.bias, before) and [path.name for path in tmp_path.iterdir()] == [HEADS]
    (tmp_path / "next").mkdir()
    copy_heads(tmp_path / "nowhere", tmp_path / "next")
    assert not (tmp_path / "next" / HEADS).exists()
    copy_heads(tmp_path, tmp_path / "next")
    assert not load_heads(tmp_path / "next", things=fresh, captions=other)
    save_heads(tmp_path / "next", captions=torch.nn.Linear(3, 2))
    copy_heads(tmp_path, tmp_path / "next")         # to go on: what was trained since stays
    load_heads(tmp_path / "next", captions=other)
    assert not torch.equal(other.bias, before)


def test_where_only_scoring_learns_nothing_else_has_a_gradient(tmp_path, scenes):
    model = nano.new_model(nano.write_folder(tmp_path / "model", SMALL))
    module = Looking(model, Reader(model.vision.vision_model))
    answer.keep_still(module, trunk=False, scoring=True)
    module.search(examples_of(scenes, 1))[0].backward()
    learns = {name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0}
    assert all(name.startswith((*answer.SCORE, "log_temperature", "captions.", "things.", "low_things.")) for name in learns)
    assert all(any(name.startswith(part) for name in learns) for part in answer.SCORE), "each part of it does"
