"""score gives the probability the formula says, in [0, 1], and refuses what has none."""
import numpy as np
import pytest
import reference_ops
from ps3_sdk import _core
from ps3_sdk.errors import InputError

RNG = np.random.default_rng(0)


def inputs(g=27, width=1152, v=54, view_width=512):
    make = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
    return make(g * g, width), make(v * v, view_width), make(width), make(view_width, width), make(view_width)


@pytest.mark.parametrize("g, width, v, view_width", [(27, 1152, 54, 512), (24, 1024, 54, 512), (3, 5, 9, 7), (1, 1, 1, 1), (2, 17, 2, 33)])
def test_matches_the_formula(g, width, v, view_width):
    arguments = inputs(g, width, v, view_width)
    prob = _core.score(*arguments)
    assert prob.shape == (g, g) and prob.dtype == np.float32
    assert np.abs(prob - reference_ops.score(*arguments)).max() <= 2e-6


def test_without_a_view():
    features, _, prompt, _, _ = inputs()
    assert np.abs(_core.score(features, None, prompt, None, None) - reference_ops.score(features, None, prompt, None, None)).max() <= 2e-6


@pytest.mark.parametrize("g", [27, 24])  # 24: the windows of C-RADIO's 54 x 54 view overlap
def test_equals_torch(g):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    features, view, prompt, weight, bias = map(torch.from_numpy, inputs(g))
    normalize = torch.nn.functional.normalize
    low = (normalize(features, dim=-1) @ normalize(prompt, dim=-1)).reshape(1, 1, g, g)
    fine = (normalize(view, dim=-1) @ normalize(weight @ prompt + bias, dim=-1)).reshape(1, 1, 54, 54)
    logit = 5 * (low + torch.nn.functional.adaptive_max_pool2d(fine, g)) / 2
    expected = torch.softmax(torch.stack([logit, torch.zeros_like(logit)], -1), -1)[0, 0, :, :, 0]
    got = _core.score(*[x.numpy() for x in (features, view, prompt, weight, bias)])
    assert np.abs(got - expected.numpy()).max() <= 1e-6


def test_scale_of_prompt_and_features_does_not_matter():
    features, view, prompt, weight, bias = inputs()
    bias = np.zeros_like(bias)
    first = _core.score(features, view, prompt, weight, bias)
    assert np.abs(_core.score(features * 8, view * 0.25, prompt * 4, weight, bias) - first).max() <= 1e-7


def test_zero_features_have_cosine_zero():
    features, _, prompt, _, _ = inputs()
    assert (_core.score(np.zeros_like(features), None, prompt, None, None) == 0.5).all()
    assert (_core.score(features, None, np.zeros_like(prompt), None, None) == 0.5).all()


def test_threads_change_nothing():
    arguments = inputs()
    assert np.array_equal(_core.score(*arguments, num_threads=1), _core.score(*arguments, num_threads=4))


def with_value(array, at, value):
    copy = array.copy()
    copy.reshape(-1)[at] = value
    return copy


F, V, P, W, B = inputs(3, 8, 6, 4)
BAD = {
    "prompt_nan": ((F, V, with_value(P, 2, np.nan), W, B), "prompt[2] is nan"),
    "prompt_inf": ((F, V, with_value(P, 2, np.inf), W, B), "prompt[2] is inf"),
    "features_nan": ((with_value(F, 8 * 4, np.nan), V, P, W, B), "place 4 give no number"),
    "view_nan": ((F, with_value(V, 0, np.nan), P, W, B), "place 0 give no number"),
    "prompt_width": ((F, V, P[:7].copy(), W, B), "prompt holds 7 floats; needs 8"),
    "prompt_rank": ((F, V, P[None], W, B), "prompt has shape (1, 8); needs 1 axis"),
    "features_f64": ((F.astype(np.float64), V, P, W, B), "features is float64; needs float32"),
    "features_square": ((F[:8].copy(), V, P, W, B), "features has 8 rows; needs a square grid"),
    "features_order": ((np.asfortranarray(F), V, P, W, B), "features is not in C order"),
    "view_grid": ((F, V[:4].copy(), P, W, B), "view grid 2 of width 4 over grid 3; needs at least the grid"),
    "view_weight": ((F, V, P, W[:, :7].copy(), B), "view weight holds 28 floats; needs 32"),
    "view_bias": ((F, V, P, W, B[:3].copy()), "view bias holds 3 floats; needs 4"),
    "view_weight_missing": ((F, V, P, None, B), "view_weight is a NoneType; needs a numpy array"),
    "empty": ((F[:0].copy(), None, P, None, None), "features has 0 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_is_wrong(name):
    arguments, message = BAD[name]
    with pytest.raises(InputError) as error:
        _core.score(*arguments)
    assert message in str(error.value) and str(error.value).startswith("[score] ")
