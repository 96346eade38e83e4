"""Places that say where they are: how they are marked, what prompts aim at, how questions say what they look for."""
import re
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'ps3_sdk[export]'")

from ps3_sdk.training import nano
from ps3_sdk.training.examples import make_example
from ps3_sdk.training.looking import Looking
from ps3_sdk.training.places import ASIDE, CHANNELS, aim, explained, found_by, mark_places, prompt_of_a_place, teach_words
from ps3_sdk.training.reading import Reader
from test_training import folder, scene      # noqa: F401, fixtures


def test_marked_places_say_where_they_are_and_leave_the_details_alone(folder, scene):
    model = nano.new_model(folder)
    vision = model.vision.vision_model
    looking = Looking(model, Reader(vision))
    example = make_example(scene, np.random.default_rng(0))
    lows = [example.low, example.low.flip(0)]

    def positions(scale):
        grid = model.config.vision.grids[scale]
        return vision.position(scale, (grid, grid), torch.arange(grid * grid)).detach()

    with torch.no_grad():
        found, before = looking.find([example]), [positions(scale) for scale in range(4)]
    frames = [*lows, example.low.roll(50, dims=0), example.low.roll(100, dims=0)]      # explained() judges by the last quarter, which was not marked with
    told = explained(vision, frames)
    mark_places(model, lows, found.prompts)
    assert explained(vision, frames) > max(0.9, (1 + told) / 2)
    assert (positions(0) - before[0]).abs().max() > 0.5
    assert all((positions(scale) - before[scale]).abs().max() < 1e-5 for scale in (1, 2, 3))
    with torch.no_grad():
        assert (looking.find([example]).prompts[:, -CHANNELS:] == 0).all(), "what no prompt has learnt to say yet changes no order"


def test_a_prompt_aims_at_the_middle_of_its_places():
    truth = torch.zeros(3, 729)
    truth[0, [0, 2]] = 1            # upper left corner and two places beside it
    truth[1, 728] = 1               # lower right corner; the third has none
    prompts = torch.zeros(3, 16)
    prompts[:, 0] = 100.0           # so long that its channels do not change its length
    prompts[0, -CHANNELS:-CHANNELS + 2] = 0.4 * 100 * torch.tensor([-1.0, -1 + 1 / 13])
    prompts[1, -CHANNELS:-CHANNELS + 2] = 0.4 * 100
    assert aim(prompts, truth) < 0.05 and aim(prompts, truth.flip(0)[[1, 2, 0]]) > 0.5
    assert aim(prompts, truth * 0) == 0


def test_what_is_found_is_told_by_what_questions_name():
    place = torch.zeros(729, dtype=torch.bool)
    place[3] = True
    asked = [("read the red bus", "A", place), ("the leftmost bus", "B", place), ("the left red bus", "C", place), ("the bus", "D", place), ("the blue bus", "not visible", ~place & place)]
    truth, prob = torch.stack([place.float() for *_, place in asked]), torch.zeros(5, 729)
    prob[[0, 2], 3] = 1.0
    prob[[1, 3, 4], 4] = 1.0
    looking = SimpleNamespace(find=lambda examples: SimpleNamespace(truth=truth, prob=prob))
    assert found_by(looking, [SimpleNamespace(asked=asked)]) == {"colour": [True], "place": [False], "colour and place": [True], "neither": [False]}


def test_prompts_that_name_a_place_say_where_it_is():
    rng, seen = np.random.default_rng(0), set()
    words = {(0, -ASIDE): "left", (0, ASIDE): "right", (-ASIDE, 0): "top|upper|highest", (ASIDE, 0): "bottom|lower|lowest"}
    for _ in range(300):
        prompt, at = prompt_of_a_place(rng)
        seen.add(at)
        named = [place for place, word in words.items() if re.search(rf"\b({word}|{word}most)\b", prompt)]
        assert named == ([at] if at != (0, 0) else []), prompt
    assert len(seen) == 5


def test_words_for_places_are_learnt_and_nothing_else_is_touched(folder, scene):
    model = nano.new_model(folder)
    looking = Looking(model, Reader(model.vision.vision_model))
    lows = [make_example(scene, np.random.default_rng(0)).low]
    before = {name: value.clone() for name, value in model.named_parameters()}
    first, last = (teach_words(looking, lows, steps, say=lambda *_, **__: None) for steps in (1, 120))
    changed = {name.split(".")[0] if name.startswith("llm") else name.rsplit(".", 1)[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"llm", "projector.top_down_prompt_head"}
    assert last < 0.5 * first, (first, last)
