"""decode: rows in, tokens out. The loop, the shared prefix, every way an answer ends, sampling."""
import threading

import numpy as np
import pytest
import tiny_llm

from ps3_sdk import decode
from ps3_sdk.decode import STOPPED, Decoder, DecoderSpec, TokenEmbedding
from ps3_sdk.errors import InputError, RuntimeFailedError
from ps3_sdk.sampling import Sampling

CONFIG = tiny_llm.config()
WEIGHTS = tiny_llm.tensors(CONFIG)
SPEC = DecoderSpec(width=64, num_layers=2, kv_heads=2, head_width=16, vocabulary=tiny_llm.VOCABULARY, context_length=96)
EMBED = TokenEmbedding(WEIGHTS["model.embed_tokens.weight"][:SPEC.vocabulary])
PROMPT = EMBED(np.arange(40, 60))
NETWORKS = {"numpy": lambda: tiny_llm.NumpyNetwork(CONFIG, WEIGHTS), "onnxruntime": lambda: tiny_llm.OrtNetwork(str(tiny_llm.ONNX)),
            "in place": lambda: in_place(tiny_llm.ONNX), "on a device": lambda: on_a_device(tiny_llm.ONNX)}


def in_place(path):
    """As sessions run it: keys and values grow in the arrays they lie in."""
    import onnxruntime
    from ps3_sdk.runtimes.ort import OrtNetwork
    return OrtNetwork(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), "decode", onnxruntime.RunOptions())


PATCHING = threading.Lock()       # of two threads that patch at once, one would put the other's patch back for good


def on_a_device(path):
    """As sessions run it on a GPU, but that the device's memory is other memory of this machine: what is not copied there and back is missing."""
    import onnxruntime
    from ps3_sdk.runtimes import ort_cuda

    real = onnxruntime.OrtValue.ortvalue_from_numpy

    class Values:
        ortvalue_from_numpy = staticmethod(lambda array, device, index: real(array.copy()))

    class Elsewhere(ort_cuda.OrtCudaNetwork):
        def bound(self, arrays):
            with PATCHING, pytest.MonkeyPatch.context() as patch:
                patch.setattr(onnxruntime, "OrtValue", Values)
                patch.setattr(ort_cuda, "DEVICE", "cpu")
                return super().bound(arrays)

    return Elsewhere(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), "decode", onnxruntime.RunOptions(), [])


@pytest.fixture(scope="module")
def truth():
    """Greedy ids of the numpy model, every row computed anew for every token."""
    rows, ids = PROMPT, []
    network = NETWORKS["numpy"]()
    none = {f"past_key_values.{i}.{kind}": np.empty((1, 2, 0, 16), np.float32) for i in range(2) for kind in ("key", "value")}
    for _ in range(20):
        logits = network.run({"inputs_embeds": rows[None], "attention_mask": np.ones((1, len(rows)), np.int64), **none}, ["logits"])["logits"][0, 0, :SPEC.vocabulary]
        ids.append(int(logits.argmax()))
        rows = np.concatenate([rows, EMBED(ids[-1:])])
    return ids


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


@pytest.fixture
def decoder(network):
    return Decoder(network, SPEC)


@pytest.fixture
def asked(decoder):
    return decoder.prefill(PROMPT)


def answer(decoder, state, **options):
    generation = decoder.generate(state, EMBED, **{"stop_ids": (), "max_tokens": 20, **options})
    return [token.id for token in generation], generation


# -- reading rows -----------------------------------------------------------------------------------------------------

def test_greedy_ids_are_those_of_computing_everything_anew(decoder, asked, truth):
    assert len(set(truth)) > 4
    assert answer(decoder, asked)[0] == truth


def test_an_answer_begins_with_a_seldom_id_from_its_probability_on(decoder, asked, truth):
    prob = np.exp(asked.logits - asked.logits.max()) / np.exp(asked.logits - asked.logits.max()).sum()
    second = int(np.argsort(-prob)[1])
    for seldom, wanted in (((truth[0], 0.99 * prob[truth[0]]), truth[0]), ((truth[0], 1.01 * prob[truth[0]]), second), ((second, 2.0), truth[0])):
        assert answer(decoder, asked, seldom=seldom, max_tokens=1)[0] == [wanted]


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 19, 20, 64])
def test_chunks_change_rounding_only(network, asked, truth, chunk_rows):
    decoder = Decoder(network, SPEC, chunk_rows)
    state = decoder.prefill(PROMPT)
    assert state.length == len(PROMPT) and state.hidden.shape == (64,) and state.logits.shape == (SPEC.vocabulary,)
    np.testing.assert_allclose(state.logits, asked.logits, rtol=0, atol=1e-5 * np.abs(asked.logits).max())
    np.testing.assert_allclose(state.hidden, asked.hidden, rtol=0, atol=1e-5 * np.abs(asked.hidden).max())
    assert answer(decoder, state)[0] == truth


def test_a_chunk_is_never_larger_than_asked():
    network = NETWORKS["numpy"]()
    Decoder(network, SPEC, 8).prefill(PROMPT)
    assert network.runs == [8, 8, 4]


def test_a_shared_prefix_gives_identical_answers(decoder, truth):
    prefix = decoder.prefill(PROMPT[:12])
    before = {name: array.copy() for name, array in prefix.kv.items()}
    first, other, again = decoder.prefill(PROMPT[12:], prefix), decoder.prefill(EMBED([7, 8, 9]), prefix), decoder.prefill(PROMPT[12:], prefix)
    assert answer(decoder, first)[0] == answer(decoder, again)[0] == truth
    assert (first.logits == again.logits).all() and not np.allclose(first.logits, other.logits)
    assert prefix.length == 12 and all((prefix.kv[name] == before[name]).all() for name in before)


def test_a_state_can_be_continued_twice_and_cannot_be_written(decoder, asked):
    assert answer(decoder, asked)[0] == answer(decoder, asked)[0]
    for array in asked.kv.values():
        with pytest.raises(ValueError):
            array[...] = 0


def test_several_threads_share_one_decoder_and_state(decoder, asked, truth):
    found = []
    threads = [threading.Thread(target=lambda: found.append(answer(decoder, asked)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [truth] * 4


def test_ids_beyond_the_vocabulary_are_never_produced(network):
    small = DecoderSpec(**{**SPEC.__dict__, "vocabulary": 5})
    decoder = Decoder(network, small)
    state = decoder.prefill(PROMPT)
    assert state.logits.shape == (5,)
    assert max(answer(decoder, state)[0]) < 5


def test_the_conversation_goes_on_behind_the_answer(decoder, asked):
    ids, generation = answer(decoder, asked, max_tokens=6)
    assert generation.state.length == len(PROMPT) + 5       # the sixth token was produced, not read
    going_on = decoder.prefill(EMBED([ids[-1], 50, 51]), generation.state)
    anew = decoder.prefill(np.concatenate([PROMPT, EMBED([*ids, 50, 51])]))
    np.testing.assert_allclose(going_on.logits, anew.logits, rtol=0, atol=1e-5 * np.abs(anew.logits).max())


def test_no_rows_give_the_state_back(decoder, asked):
    assert decoder.prefill(PROMPT[:0], asked) is asked


# -- keys and values in place -----------------------------------------------------------------------------------------

@pytest.fixture
def pair():
    """The same network with keys and values copied, and in place."""
    return Decoder(NETWORKS["onnxruntime"](), SPEC), Decoder(NETWORKS["in place"](), SPEC)


@pytest.mark.parametrize("chunk_rows", [1, 7, 512])
def test_in_place_is_equal_to_the_bit(pair, chunk_rows, monkeypatch):
    monkeypatch.setattr(decode, "SPARE_ROWS", 3)        # the arrays are outgrown again and again
    found = []
    for decoder in pair:
        decoder.chunk_rows = chunk_rows
        prefix = decoder.prefill(PROMPT[:12])
        states = [prefix, decoder.prefill(PROMPT[12:], prefix), decoder.prefill(EMBED([7, 8]), prefix)]
        for _ in range(2):      # each state twice: the first continues in place, the second beside it
            for state in list(states[:3]):
                ids, generation = answer(decoder, state)
                states.append(generation.state)
        found.append(states)
    for copied, own in zip(*found):
        assert copied.length == own.length and (copied.logits == own.logits).all() and (copied.hidden == own.hidden).all()
        assert all((copied.kv[name] == own.kv[name]).all() for name in copied.kv)


def test_a_token_is_appended_where_the_others_lie(pair):
    decoder = pair[1]
    state = decoder.prefill(PROMPT)
    _, generation = answer(decoder, state)
    assert generation.state.cache is state.cache and answer(decoder, state)[1].state.cache is not state.cache
    name = next(iter(state.kv))
    assert np.shares_memory(generation.state.kv[name], state.kv[name]) and state.kv[name].shape == (1, 2, len(PROMPT), 16)


def test_what_comes_later_leaves_every_state_as_it_was(pair):
    decoder, rng = pair[1], np.random.Generator(np.random.PCG64(4))
    seen = [decoder.empty]
    kept = [{}]
    for _ in range(60):
        state = seen[rng.integers(len(seen))]
        state = state.upto(int(rng.integers(state.length // 2, state.length + 1)))
        if state.length > 80:
            continue
        seen.append(decoder.prefill(EMBED(rng.integers(0, 200, rng.integers(1, 9))), state))
        kept.append({name: array.copy() for name, array in seen[-1].kv.items()})
    assert len(seen) > 30
    for state, before in zip(seen, kept):
        assert all((array == before[name]).all() for name, array in state.kv.items() if before)


def test_rows_whose_writing_failed_are_written_anew(pair, truth, monkeypatch):
    decoder = pair[1]
    state = decoder.prefill(PROMPT)
    bound = state.cache.network
    with monkeypatch.context() as patch:
        patch.setattr(bound, "run", lambda *_: (_ for _ in ()).throw(RuntimeFailedError("[ort] gone")))
        with pytest.raises(RuntimeFailedError):
            decoder.prefill(PROMPT[:2], state)
    assert answer(decoder, state)[0] == truth


def test_only_the_first_rows_of_a_state_are_gone_on_from(decoder, asked):
    cut = asked.upto(9)
    assert cut.length == 9 and cut.logits is None and asked.upto(20) is asked
    again, anew = decoder.prefill(PROMPT[9:], cut), decoder.prefill(PROMPT[9:], decoder.prefill(PROMPT[:9]))
    np.testing.assert_allclose(again.logits, anew.logits, rtol=0, atol=1e-5 * np.abs(anew.logits).max())


# -- how an answer ends -----------------------------------------------------------------------------------------------

def test_stops_on_a_stop_id_which_is_no_part_of_the_answer(decoder, asked, truth):
    stop = next(i for i in truth if truth.index(i) >= 4)
    ids, generation = answer(decoder, asked, stop_ids={stop})
    assert ids == truth[:truth.index(stop)] == generation.ids
    assert (generation.stopped, generation.stop_id) == ("stop id", stop)


def test_an_answer_may_be_empty(decoder, asked, truth):
    ids, generation = answer(decoder, asked, stop_ids=[truth[0]])
    assert ids == [] and generation.stopped == "stop id" and generation.notes == ()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_stops_at_max_tokens_without_computing_more(truth, count):
    network = NETWORKS["numpy"]()
    decoder = Decoder(network, SPEC)
    ids, generation = answer(decoder, decoder.prefill(PROMPT), max_tokens=count)
    assert ids == truth[:count] and generation.stopped == "max tokens"
    assert network.runs == [len(PROMPT)] + [1] * max(count - 1, 0)


def test_stops_at_the_context_length_and_says_so(decoder):
    state = decoder.prefill(EMBED(np.arange(90)))
    ids, generation = answer(decoder, state)
    assert len(ids) == 6 and generation.stopped == "context length"
    assert "96 rows" in generation.notes[0]
    ids, generation = answer(decoder, decoder.prefill(EMBED(np.arange(6)), state))
    assert ids == [] and generation.stopped == "context length"


def test_an_event_cancels_between_tokens(decoder, asked, truth):
    cancel, ids = threading.Event(), []
    generation = decoder.generate(asked, EMBED, stop_ids=(), max_tokens=20, cancel=cancel)
    for token in generation:
        ids.append(token.id)
        if len(ids) == 3:
            cancel.set()
    assert ids == truth[:3] and generation.stopped == "cancelled"


def test_a_function_cancels_before_the_first_token(decoder, asked):
    ids, generation = answer(decoder, asked, cancel=lambda: True)
    assert ids == [] and generation.stopped == "cancelled"


def test_what_ended_stays_ended(decoder, asked):
    _, generation = answer(decoder, asked, max_tokens=2)
    assert list(generation) == [] and generation.stopped in STOPPED


def test_a_failing_network_ends_the_answer(decoder, asked):
    def broken(ids):
        raise RuntimeFailedError("[ort] gone")
    generation = decoder.generate(asked, broken, stop_ids=(), max_tokens=9)
    next(generation)
    with pytest.raises(RuntimeFailedError):
        next(generation)
    assert list(generation) == [] and generation.stopped == "failed"


# -- probabilities and sampling ---------------------------------------------------------------------------------------

def test_logprob_is_that_of_the_softmax(decoder, asked):
    token = next(decoder.generate(asked, EMBED, stop_ids=(), max_tokens=1))
    logits = asked.logits.astype(np.float64)
    assert token.logprob == pytest.approx(logits[token.id] - np.log(np.exp(logits).sum()), abs=1e-5)


def test_sampling_is_reproducible_and_seeds_differ(decoder, asked, truth):
    draws = [answer(decoder, asked, sampling=Sampling(temperature=2.0, seed=seed))[0] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2] and draws[0] != truth


@pytest.mark.parametrize("sampling", [Sampling(temperature=1e-6), Sampling(temperature=50.0, top_p=1e-9)])
def test_cold_or_narrow_sampling_is_greedy(decoder, asked, truth, sampling):
    assert answer(decoder, asked, sampling=sampling)[0] == truth


def test_sampling_follows_the_probabilities_and_top_p():
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))
    draw = Sampling(seed=3).start()
    share = np.bincount([draw(logits) for _ in range(20000)], minlength=5) / 20000
    np.testing.assert_allclose(share, np.exp(logits), atol=0.015)
    draw = Sampling(top_p=0.6, seed=3).start()      # 0.4 + 0.25 is the smallest set that reaches 0.6
    share = np.bincount([draw(logits) for _ in range(20000)], minlength=5) / 20000
    np.testing.assert_allclose(share, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=0.015)


def test_equal_logits_go_to_the_lower_id(decoder, asked):
    class Flat:
        def run(self, inputs, outputs):
            out = decoder.network.run(inputs, outputs)
            return {**out, "logits": np.zeros((1, 1, 264), np.float32)}
    flat = Decoder(Flat(), SPEC)
    assert set(answer(flat, flat.prefill(PROMPT))[0]) == {0}


# -- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("embeds, words", [
    (PROMPT[0], r"float32 \(64,\); \(rows, 64\)"), (PROMPT[:, :63], r"\(20, 63\)"), (PROMPT.astype(np.float64), "float64"), (PROMPT.tolist(), "list"),
    (np.where(np.arange(64) == 3, np.nan, PROMPT).astype(np.float32), "20 NaN"), (np.full((1, 64), np.inf, np.float32), "64 NaN or infinite"),
    (np.zeros((97, 64), np.float32), "97 rows behind 0 make 97; this model's context holds 96"),
])
def test_rows_that_cannot_be_read(decoder, embeds, words):
    with pytest.raises(InputError, match=rf"^\[decode\] .*{words}"):
        decoder.prefill(embeds)


def test_rows_beyond_the_context_behind_a_state(decoder, asked):
    with pytest.raises(InputError, match="80 rows behind 20 make 100"):
        decoder.prefill(np.zeros((80, 64), np.float32), asked)


@pytest.mark.parametrize("options, words", [
    (dict(max_tokens=-1), "max_tokens is -1"), (dict(max_tokens=1.5), "max_tokens"), (dict(max_tokens=True), "max_tokens"),
    (dict(sampling="hot"), "sampling is str"), (dict(cancel=3), "cancel is int"),
])
def test_arguments_of_the_wrong_kind(decoder, asked, options, words):
    with pytest.raises(InputError, match=rf"^\[decode\] {words}"):
        answer(decoder, asked, **options)


@pytest.mark.parametrize("options", [dict(temperature=0), dict(temperature=float("nan")), dict(temperature="1"), dict(top_p=0), dict(top_p=1.1), dict(seed=-1), dict(seed=1.0)])
def test_sampling_of_the_wrong_kind(options):
    with pytest.raises(InputError, match=rf"^\[decode\] {next(iter(options))} is"):
        Sampling(**options)


def test_nothing_read_cannot_be_continued(decoder):
    with pytest.raises(InputError, match="no rows"):
        decoder.generate(decoder.empty, EMBED, stop_ids=(), max_tokens=1)


@pytest.mark.parametrize("changed", [dict(width=0), dict(dtype="float64"), dict(vocabulary=2.0), dict(num_layers=True)])
def test_specs_of_the_wrong_kind(changed):
    with pytest.raises(InputError, match=next(iter(changed))):
        DecoderSpec(**{**SPEC.__dict__, **changed})
    with pytest.raises(InputError, match="chunk_rows"):
        Decoder(None, SPEC, 0)


def test_float16_networks_refuse_rows_beyond_float16():
    decoder = Decoder(None, DecoderSpec(**{**SPEC.__dict__, "dtype": "float16"}))
    with pytest.raises(InputError, match="reach 7e.04, beyond float16"):
        decoder.prefill(np.full((1, 64), 7e4, np.float32))


def test_a_network_that_gives_nan_is_reported(decoder):
    class Broken:
        def run(self, inputs, outputs):
            return {**decoder.network.run(inputs, outputs), "logits": np.full((1, 1, 264), np.nan, np.float32)}
    with pytest.raises(RuntimeFailedError, match="NaN"):
        Decoder(Broken(), SPEC).prefill(PROMPT)


def test_embedding_rows_and_ids():
    table = np.arange(12, dtype=np.float16).reshape(4, 3)
    embed = TokenEmbedding(table)
    rows = embed(np.array([3, 0]))
    assert rows.dtype == np.float32 and (rows == [[9, 10, 11], [0, 1, 2]]).all() and embed([]).shape == (0, 3)
    for ids in ([4], [-1], [[1]], [1.5]):
        with pytest.raises(InputError, match=r"^\[decode\] "):
            embed(ids)
    halves = np.array([[1.5, -2.0, 3.25]], np.float32)
    assert (TokenEmbedding((halves.view(np.uint32) >> 16).astype(np.uint16))([0]) == halves).all(), "bfloat16 by its bits"
    for table in (np.zeros((2, 3), np.int8), np.zeros(3, np.float32), [[1.0]]):
        with pytest.raises(InputError, match="embedding table"):
            TokenEmbedding(table)
