"""select takes the best free patches, the lower id among equals; plan_looks and per_look count as the reference does."""
import numpy as np
import pytest
import reference_ops
from ps3_sdk import _core
from ps3_sdk.errors import InputError

RNG = np.random.default_rng(0)
CAPACITY_4K, PER_LOOK_4K = [2916, 11664, 72900], [85, 341, 2133]
CAPACITY_15K, PER_LOOK_15K = [2916, 11664], [512, 2048]


def free(rows, cols):
    return np.zeros(rows * cols, np.uint8)


@pytest.mark.parametrize("grid, count", [(54, 85), (108, 341), (270, 2133), (27, 729), (54, 0), (100, 17), (26, 5)])
def test_takes_the_most_probable(grid, count):
    prob, taken = RNG.random((27, 27), np.float32), free(grid, grid)
    ids = _core.select(prob, grid, grid, count, taken)
    assert ids.dtype == np.int32 and np.array_equal(ids, reference_ops.select(prob, grid, grid, count, free(grid, grid)))
    assert np.array_equal(np.flatnonzero(taken), ids)


def test_ties_go_to_lower_id():
    flat = np.full((27, 27), 0.5, np.float32)
    assert np.array_equal(_core.select(flat, 54, 54, 85, free(54, 54)), np.arange(85))
    few_values = (RNG.integers(0, 4, (27, 27)) / 4).astype(np.float32)
    for count in (1, 100, 1000, 2915):
        assert np.array_equal(_core.select(few_values, 54, 54, count, free(54, 54)), reference_ops.select(few_values, 54, 54, count, free(54, 54)))


def test_minus_zero_ties_with_zero():
    prob = np.array([[-0.0, 0.0], [0.0, -0.0]], np.float32)
    assert np.array_equal(_core.select(prob, 2, 2, 3, free(2, 2)), [0, 1, 2])


def test_looks_never_take_a_patch_twice_and_end_with_all():
    prob, taken = RNG.random((27, 27), np.float32), free(54, 54)
    seen = []
    for count in [700, 1000, 1216]:
        before = taken.copy()
        ids = _core.select(prob, 54, 54, count, taken)
        assert np.array_equal(ids, reference_ops.select(prob, 54, 54, count, before))
        seen += ids.tolist()
    assert sorted(seen) == list(range(2916)) and taken.all()


def test_any_mark_but_zero_means_taken():
    taken = free(3, 3)
    taken[[0, 4]] = [255, 7]
    assert np.array_equal(_core.select(np.ones((3, 3), np.float32), 3, 3, 3, taken), [1, 2, 3])


def test_oblong_maps_and_grids():
    prob = RNG.random((5, 9), np.float32)
    for rows, cols in [(5, 9), (10, 18), (13, 7), (1, 40)]:
        count = rows * cols // 2
        assert np.array_equal(_core.select(prob, rows, cols, count, free(rows, cols)),
                              reference_ops.select(prob, rows, cols, count, free(rows, cols)))


def test_nearest_is_torchs():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    prob = RNG.random((27, 27), np.float32)
    for grid in (54, 108, 270):
        expected = torch.nn.functional.interpolate(torch.from_numpy(prob)[None, None], size=(grid, grid), mode="nearest")[0, 0].numpy()
        assert np.array_equal(reference_ops.enlarge(prob, grid, grid), expected)


def read_only():
    marks = free(3, 3)
    marks.flags.writeable = False
    return marks


ONES = np.ones((3, 3), np.float32)
BAD = {
    "nan": ((np.array([[1, np.nan]], np.float32), 1, 2, 1, free(1, 2)), "prob[0, 1] is NaN"),
    "count_above": ((ONES, 3, 3, 9, np.array([1, 0, 0, 0, 0, 0, 0, 0, 0], np.uint8)), "count 9; 8 of the 3x3 patches are free"),
    "count_above_all": ((ONES, 3, 3, 10, free(3, 3)), "count is 10; needs 0..9"),
    "count_negative": ((ONES, 3, 3, -1, free(3, 3)), "count is -1; needs 0..9"),
    "taken_size": ((ONES, 3, 3, 1, free(3, 4)), "taken holds 12 bytes; a 3x3 grid needs 9"),
    "taken_dtype": ((ONES, 3, 3, 1, np.zeros(9, bool)), "taken is bool; needs uint8"),
    "taken_rank": ((ONES, 3, 3, 1, free(3, 3).reshape(3, 3)), "taken has shape (3, 3); needs 1 axis"),
    "taken_read_only": ((ONES, 3, 3, 1, read_only()), "taken is read-only"),
    "prob_dtype": ((ONES.astype(np.float64), 3, 3, 1, free(3, 3)), "prob is float64; needs float32"),
    "prob_rank": ((ONES.reshape(-1), 3, 3, 1, free(3, 3)), "prob has shape (9,); needs 2 axes"),
    "prob_empty": ((ONES[:0].copy(), 3, 3, 1, free(3, 3)), "prob holds 0 values for 0x3"),
    "rows": ((ONES, 0, 3, 0, free(0, 3)), "grid is 0x3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_is_wrong_and_takes_nothing(name):
    arguments, message = BAD[name]
    before = arguments[-1].copy()
    with pytest.raises(InputError) as error:
        _core.select(*arguments)
    assert message in str(error.value) and str(error.value).startswith("[select] ")
    assert np.array_equal(arguments[-1], before)


def test_per_look_splits_by_area():
    assert _core.per_look([378, 756, 1512, 3780], 2560) == PER_LOOK_4K
    assert _core.per_look([378, 756, 1512], 2560) == PER_LOOK_15K
    assert _core.per_look([384, 768, 1536, 3840], 2560) == PER_LOOK_4K
    assert _core.per_look([378, 756], 0) == [0]


def test_known_plans():
    plan = lambda **request: _core.plan_looks(CAPACITY_4K, PER_LOOK_4K, **request)
    assert plan(num_looks=0) == [] and plan(num_tokens=0) == []
    assert plan(num_looks=1) == [PER_LOOK_4K] and plan(num_looks=2) == [PER_LOOK_4K] * 2
    assert plan(num_tokens=2559) == [PER_LOOK_4K]
    assert plan(num_tokens=512) == [[17, 68, 426]]
    assert plan(num_tokens=2559 + 512) == [PER_LOOK_4K, [17, 68, 426]]
    assert plan(num_tokens=1) == []                      # less than one patch of every scale
    assert plan(num_tokens=2560) == [PER_LOOK_4K]        # the last look would be empty
    assert plan(num_looks=1, first_scales=2) == [[510, 2048, 1]]


@pytest.mark.parametrize("capacity, per_look", [(CAPACITY_4K, PER_LOOK_4K), (CAPACITY_15K, PER_LOOK_15K), ([4, 9], [3, 5]), ([100, 3, 50], [10, 10, 10])])
def test_plans_are_the_references(capacity, per_look):
    for first_scales in [None, *range(1, len(capacity) + 1)]:
        requests = [dict(all=True), *[dict(num_looks=n) for n in (0, 1, 2, 7, 10**6)],
                    *[dict(num_tokens=n) for n in (0, 1, 2, 5, 16, 100, 512, 2558, 2559, 2560, 2561, 5118, 30000, 87480, 10**9)]]
        for request in requests:
            got = _core.plan_looks(capacity, per_look, first_scales=first_scales, **request)
            assert got == reference_ops.plan_looks(capacity, per_look, first_scales=first_scales, **request)
            assert all(sum(counts) <= total for counts, total in zip(zip(*got), capacity))


def test_all_takes_every_patch_when_the_last_scale_is_large_enough():
    assert [sum(counts) for counts in zip(*_core.plan_looks(CAPACITY_4K, PER_LOOK_4K, all=True))] == CAPACITY_4K


BAD_PLANS = {
    "none": (dict(), "0 of num_looks, num_tokens and all are given; needs exactly one"),
    "two": (dict(num_looks=1, num_tokens=1), "2 of num_looks, num_tokens and all are given"),
    "looks_negative": (dict(num_looks=-3), "num_looks is -3; needs 0 or more"),
    "tokens_negative": (dict(num_tokens=-3), "num_tokens is -3; needs 0 or more"),
    "first_scales": (dict(num_looks=1, first_scales=4), "first_scales is 4; the model has 3 high-res scales"),
    "first_scales_zero": (dict(num_looks=1, first_scales=0), "first_scales is 0"),
    "lengths": (dict(num_looks=1, capacity=[1, 2]), "2 capacities and 3 per-look counts"),
    "zero_sum": (dict(num_looks=1, per_look=[0, 0, 0]), "per_look sums to 0"),
    "negative_count": (dict(num_looks=1, per_look=[1, -1, 1]), "scale 2 has capacity 11664 and per-look count -1"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_bad_plans_say_what_is_wrong(name):
    change, message = BAD_PLANS[name]
    with pytest.raises(InputError) as error:
        _core.plan_looks(**(dict(capacity=CAPACITY_4K, per_look=PER_LOOK_4K) | change))
    assert message in str(error.value) and str(error.value).startswith("[plan_looks] ")


@pytest.mark.parametrize("scales, number", [([378], 2560), ([756, 378], 2560), ([378, 756], -1), ([0, 756], 1)])
def test_bad_scales(scales, number):
    with pytest.raises(InputError, match=r"^\[per_look\] "):
        _core.per_look(scales, number)
