"""Counting looks and picking patches: the reference's budget rules, our tie rule, and what the reference crashes on."""
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
from ps3_sdk import probability
from ps3_sdk.errors import BudgetError
from ps3_sdk.export.reference.scoring import around, spread
from ps3_sdk.export.reference.selection import pick_looks, plan_looks, select, to_ids, to_maps

C15, P15 = [2916, 11664], [512, 2048]
C4K, P4K = [2916, 11664, 72900], [85, 341, 2133]


@pytest.mark.parametrize("capacity,per_look,budget,want", [
    (C4K, P4K, {}, [P4K]),
    (C4K, P4K, dict(num_looks=0), []),
    (C4K, P4K, dict(num_tokens=0), []),
    (C4K, P4K, dict(num_tokens=1), []),                                         # every share rounds down to none; the reference crashes
    (C4K, P4K, dict(num_tokens=2), [[0, 0, 1]]),
    (C4K, P4K, dict(num_tokens=2559), [P4K]),
    (C4K, P4K, dict(num_tokens=3000), [P4K, [14, 58, 367]]),                    # 439 left, 2 lost to rounding
    (C4K, P4K, dict(first_scales=2), [[510, 2048, 1]]),
    (C4K, P4K, dict(num_tokens=600, first_scales=2), [[115, 482, 1962]]),       # filled up to a whole look, as the reference does
    (C15, [1500, 320], dict(num_looks=2), [[1500, 320], [1416, 404]]),          # 84 that scale 1 lacks go to scale 2
    (C15, P15, dict(num_looks=99), [P15] * 5 + [[356, 1424]]),
    ([4, 4], [3, 1], dict(num_looks="all"), [[3, 1], [1, 3]]),
    ([4, 4], [1, 3], dict(num_looks=2), [[1, 3], [1, 1]]),                      # what the last scale lacks is lost
    ([4, 4], [0, 5], dict(num_looks="all"), [[0, 4]]),                          # a second look would be empty
])
def test_plans(capacity, per_look, budget, want):
    assert plan_looks(capacity, per_look, **budget) == want


def test_the_core_plans_the_same_looks():
    from ps3_sdk import _core
    for (capacity, per_look), first, looks in itertools.product([(C15, P15), (C4K, P4K), ([4, 4], [3, 1]), (C15, [2000, 3])], [None, 1, 2], [0, 1, 3, "all"]):
        ours = plan_looks(capacity, per_look, num_looks=looks, first_scales=first)
        asked = dict(all=True) if looks == "all" else dict(num_looks=looks)
        assert _core.plan_looks(capacity, per_look, first_scales=first, **asked) == ours, (per_look, first, looks)
        # no tiny last look together with first_scales: the reference divides by zero there
        for tokens in (600, 3000, 14000, 10 ** 6) if first else (0, 1, 2, 7, 600, 2559, 2560, 3000, 14000, 10 ** 6):
            assert _core.plan_looks(capacity, per_look, first_scales=first, num_tokens=tokens) == plan_looks(capacity, per_look, first_scales=first, num_tokens=tokens)


@pytest.mark.parametrize("budget,word", [(dict(num_looks=1, num_tokens=1), "both"), (dict(num_looks=-1), "num_looks"), (dict(num_tokens=1.5), "num_tokens"),
                                         (dict(num_looks=True), "num_looks"), (dict(num_looks="some"), "all"), (dict(first_scales=0), "1 to 2"), (dict(first_scales=3), "1 to 2")])
def test_budgets_refused(budget, word):
    with pytest.raises(BudgetError, match=word):
        plan_looks(C15, P15, **budget)


def test_ties_go_to_the_lower_id():
    taken = torch.zeros(12, dtype=torch.bool)
    prob = torch.tensor([[.5, .9, .5, .5], [.9, .5, .1, .5], [.5, .5, .5, .9]])
    assert select(prob, 5, taken).tolist() == [0, 1, 2, 4, 11]
    assert select(prob, 3, taken).tolist() == [3, 5, 7]
    assert select(prob, 0, taken).tolist() == [] and taken.sum() == 8


def test_looks_never_pick_twice_and_see_everything():
    probs = [torch.rand(2, 6, 6), torch.rand(2, 12, 12)]
    plan = plan_looks([36, 144], [8, 32], num_looks="all")
    looks = pick_looks(probs, [plan, plan])
    for scale in range(2):
        for image in range(2):
            ids = torch.cat([look[scale][image] for look in looks])
            assert len(ids.unique()) == len(ids)
            assert all(look[scale][image].tolist() == sorted(look[scale][image].tolist()) for look in looks)
            first = probs[scale][image].flatten()[looks[0][scale][image]].min()
            assert (probs[scale][image].flatten()[looks[1][scale][image]] <= first).all()
    assert all(m.all() for m in to_maps(looks, [(6, 6), (12, 12)], 2, torch.device("cpu")))


def test_maps_and_ids_are_two_ways_to_say_the_same():
    maps = [torch.rand(2, 3, 5) > 0.5, torch.rand(2, 7, 2) > 0.5]
    assert all(a.equal(b) for a, b in zip(to_maps([to_ids(maps)], [(3, 5), (7, 2)], 2, torch.device("cpu")), maps))


@pytest.mark.parametrize("best", [(0, 0), (26, 13), (13, 26), (5, 7)])
def test_neighbours_of_the_best_place_come_first(best):
    prob = 0.9 * np.random.default_rng(0).random((27, 27), np.float32)
    prob[best] = 0.95
    prob[best[0], best[1] - 3] = 0.95            # as probable: the first one counts
    first = np.unravel_index(prob.argmax(), prob.shape)
    found = probability.around(prob, 1)
    assert np.array_equal(found, around(torch.from_numpy(prob)[None], 1)[0].numpy())
    near = {(row, column) for row in range(27) for column in range(27) if max(abs(row - first[0]), abs(column - first[1])) <= 1}
    order = [divmod(int(i), 27) for i in np.argsort(-found, axis=None, kind="stable")]
    assert set(order[:len(near)]) == near and order[0] == tuple(first)
    assert order[len(near):] == sorted(order[len(near):], key=lambda place: (-prob[place], place))


def test_given_places_are_certain_and_smoothing_comes_after():
    prob, given = torch.full((1, 3, 3), 0.25), torch.zeros(1, 12, 12)
    given[0, 0, 0] = 1.0
    plain, = spread(prob, [(6, 6)], given)
    assert plain[0, 0, 0] == 1 and (plain[0].flatten()[1:] == 0.25).all()
    whole, = spread(prob, [(6, 6)], given.long())       # an integer map marks patches that are covered wholly
    assert (whole == 0.25).all()
    smooth = spread(prob, [(12, 12)], torch.ones(1, 12, 12), smooth=True)[0]
    assert (smooth == 1).all()
