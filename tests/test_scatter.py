"""scatter puts tokens back to their places and zeros elsewhere."""
import numpy as np
import pytest
import reference_ops
from ps3_sdk import _core
from ps3_sdk.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels, rows, cols, count", [(64, 54, 54, 85), (1, 1, 1, 1), (7, 3, 5, 15), (1152, 27, 27, 100), (5, 4, 4, 0)])
def test_tokens_go_to_their_places(channels, rows, cols, count):
    tokens = RNG.standard_normal((count, channels)).astype(np.float32)
    ids = RNG.permutation(rows * cols)[:count].astype(np.int32)
    got = _core.scatter(tokens, ids, rows, cols)
    assert got.shape == (channels, rows, cols) and np.array_equal(got, reference_ops.scatter(tokens, ids, rows, cols))


TOKENS, IDS = np.ones((3, 2), np.float32), np.array([0, 3, 5], np.int32)
BAD = {
    "twice": ((TOKENS, np.array([1, 2, 1], np.int32), 2, 3), "id[2] is 1 for the second time; needs unique ids"),
    "above": ((TOKENS, np.array([0, 3, 6], np.int32), 2, 3), "id[2] is 6; a 2x3 grid has ids 0..5"),
    "negative": ((TOKENS, np.array([-1, 3, 5], np.int32), 2, 3), "id[0] is -1"),
    "number": ((TOKENS, IDS[:2].copy(), 2, 3), "6 token values for 2 ids"),
    "ids_dtype": ((TOKENS, IDS.astype(np.int64), 2, 3), "ids is int64; needs int32"),
    "tokens_dtype": ((TOKENS.astype(np.float64), IDS, 2, 3), "tokens is float64; needs float32"),
    "tokens_rank": ((TOKENS[0], IDS, 2, 3), "tokens has shape (2,); needs 2 axes"),
    "no_channels": ((TOKENS[:, :0].copy(), IDS, 2, 3), "0 channels"),
    "grid": ((TOKENS, IDS, 0, 3), "grid is 0x3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_is_wrong(name):
    arguments, message = BAD[name]
    with pytest.raises(InputError) as error:
        _core.scatter(*arguments)
    assert message in str(error.value) and str(error.value).startswith("[scatter] ")
