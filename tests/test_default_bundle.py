"""The embedded bundle is what its recipe makes, small enough to ship, and says that it knows nothing."""
import pytest

from ps3_sdk.bundle import Bundle
from ps3_sdk.session import DEFAULT_BUNDLE


def test_it_is_small_and_says_that_its_weights_are_random():
    with Bundle.open(DEFAULT_BUNDLE) as bundle:
        assert bundle.size_bytes < 3_000_000
        assert bundle.manifest["model"]["weights"] == "random"
        assert bundle.manifest["geometry"]["scales_px"] == [378, 756, 1512, 3780]


def test_its_certificate_covers_every_stage_with_arithmetic():
    with Bundle.open(DEFAULT_BUNDLE) as bundle:
        parity = bundle.manifest["parity"]
    assert set(parity) == {"encode_low", "encode_prompt", "score", "gather", "encode_high", "decode"}
    assert all(0 < stage["max_relative_error"] <= 1e-5 for stage in parity.values())


def test_the_recipe_gives_the_same_networks_and_tables(tmp_path):
    pytest.importorskip("torch", reason="needs ps3_sdk[export]")
    from ps3_sdk.export.seeded_bundle import write_seeded
    write_seeded(tmp_path / "again.plan")
    with Bundle.open(DEFAULT_BUNDLE) as shipped, Bundle.open(tmp_path / "again.plan") as again:
        for name, entry in shipped.manifest["members"].items():
            if name != "tokenizer.json":        # its text is the tokenizers library's, which may change with its version
                assert again.manifest["members"][name] == entry, name
