"""position_rows picks rows of the table that torch would resample as a whole, crops for RADIO, and adds the residual."""
import numpy as np
import pytest
import reference_ops
from ps3_sdk import _core
from ps3_sdk.errors import InputError

RNG = np.random.default_rng(0)


def table(g, width):
    return RNG.standard_normal((g * g, width)).astype(np.float32)


def ids_of(n, count=500):
    return RNG.integers(0, n * n, count).astype(np.int32)


@pytest.mark.parametrize("g, n", [(27, 54), (27, 108), (27, 270), (24, 48), (27, 27), (27, 40), (27, 13), (64, 9), (1, 5), (5, 1), (2, 3)])
def test_resamples_as_the_formula_says(g, n):
    values = table(g, 40)
    for ids in (np.arange(n * n, dtype=np.int32), ids_of(n)):
        got = _core.position_rows(values, g, n, ids)
        assert got.dtype == np.float32 and np.abs(got - reference_ops.position_rows(values, g, n, ids)).max() <= 1e-6 * np.abs(values).max()


@pytest.mark.parametrize("n", [54, 108, 270, 20])
def test_equals_torch(n):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    values = table(27, 64)
    grid = torch.from_numpy(values).reshape(1, 27, 27, 64).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(n, n), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(n * n, 64).numpy()
    assert np.abs(_core.position_rows(values, 27, n, np.arange(n * n, dtype=np.int32)) - expected).max() <= 1e-6 * np.abs(values).max()


def test_same_grid_takes_rows_as_they_are():
    values, ids = table(27, 1152), ids_of(27)
    assert np.array_equal(_core.position_rows(values, 27, 27, ids), values[ids])


def test_crop_takes_the_top_left():
    values, ids = table(32, 24), ids_of(20)
    expected = values.reshape(32, 32, 24)[:20, :20].reshape(400, 24)[ids]
    assert np.array_equal(_core.position_rows(values, 32, 20, ids, crop=True), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("crop", [False, True])
def test_adds_the_residual(dtype, crop):
    g, n = (16, 12) if crop else (9, 12)
    values, residual, ids = table(g, 33), table(n, 33).astype(dtype), ids_of(n)
    plain = _core.position_rows(values, g, n, ids, crop=crop)
    assert np.array_equal(_core.position_rows(values, g, n, ids, residual, crop), plain + residual[ids].astype(np.float32))


def test_every_half_is_read_right():
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)[None]
    got = _core.position_rows(np.zeros((1, 65536), np.float32), 1, 1, np.zeros(1, np.int32), halves)
    assert np.array_equal(got, halves.astype(np.float32), equal_nan=True)


def test_threads_change_nothing_and_no_ids_give_no_rows():
    values, ids = table(27, 100), np.sort(ids_of(270, 3000))
    assert np.array_equal(_core.position_rows(values, 27, 270, ids, num_threads=1), _core.position_rows(values, 27, 270, ids, num_threads=3))
    assert _core.position_rows(values, 27, 270, np.empty(0, np.int32)).shape == (0, 100)


T, IDS = table(4, 8), np.arange(3, dtype=np.int32)
BAD = {
    "id": (dict(ids=np.array([64], np.int32)), "id[0] is 64; a 8x8 grid has ids 0..63"),
    "ids_dtype": (dict(ids=np.arange(3)), "ids is int64; needs int32"),
    "grid": (dict(g=5), "table holds 128 floats; 5x5 rows of 8 need 200"),
    "grid_zero": (dict(g=0), "grid 0, n 8"),
    "n_zero": (dict(n=0), "grid 4, n 0"),
    "table_dtype": (dict(table=T.astype(np.float16)), "table is float16; needs float32"),
    "table_rank": (dict(table=T[None]), "table has shape (1, 16, 8); needs 2 axes"),
    "crop": (dict(crop=True), "crop of a 4x4 table to 8x8; needs n <= grid"),
    "residual_size": (dict(residual=table(7, 8)), "residual holds 392 values; 8x8 rows of 8 need 512"),
    "residual_dtype": (dict(residual=table(8, 8).astype(np.float64)), "residual is float64; needs float32"),
    "residual_byte_order": (dict(residual=table(8, 8).astype(">f2")), "residual is >f2; needs float32"),
    "residual_order": (dict(residual=np.asfortranarray(table(8, 8).astype(np.float16))), "in C order"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_is_wrong(name):
    change, message = BAD[name]
    with pytest.raises(InputError) as error:
        _core.position_rows(**(dict(table=T, g=4, n=8, ids=IDS) | change))
    assert message in str(error.value) and str(error.value).startswith("[position_rows] ")
