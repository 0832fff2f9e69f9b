"""Whisper's decoder: a small one against plain NumPy, the real one against CTranslate2's."""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from stepaudio.errors import BackendError, Cancelled
from stepaudio.speech.backends.whisper import WhisperTranscriber
from stepaudio.speech.backends.whisper_decoder import SURE, Found, WhisperDecoder
from stepaudio.speech.weights import Store, catalogue

Array = NDArray[Any]
Weights = dict[str, Array]

LAYERS, HEADS, WIDTH, VOCABULARY, POSITIONS = 2, 2, 64, 40, 32
END = 30  # later tokens are no text
START = (31, 32)
SILENCE = 12  # states
ENDING = np.float16(4.0)


# ---------------------------------------------------------------- a small decoder


def small_weights(seed: int, sureness: float) -> Weights:
    """Random weights; the larger `sureness`, the surer it is of the next token."""
    rng = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> Array:
        return (rng.standard_normal((outputs, inputs)) * scale / math.sqrt(inputs)).astype(np.float16)

    def vector(size: int, mean: float = 0.0) -> Array:
        return (mean + rng.standard_normal(size) * 0.1).astype(np.float16)

    weights = {
        "decoder/num_heads": np.array(HEADS, np.int16),
        "decoder/embeddings/weight": matrix(VOCABULARY, WIDTH, sureness),
        "decoder/position_encodings/encodings": matrix(POSITIONS, WIDTH, 3 * sureness),
        "decoder/layer_norm/gamma": vector(WIDTH, 1.0),
        "decoder/layer_norm/beta": vector(WIDTH),
        "encoder/conv1/weight": matrix(4, 4),
    }
    # The end is likely everywhere, so that there are ends.
    weights["decoder/embeddings/weight"][END] += ENDING * weights["decoder/layer_norm/beta"]
    shapes = {
        "self_attention/linear_0": (3 * WIDTH, WIDTH),
        "self_attention/linear_1": (WIDTH, WIDTH),
        "attention/linear_0": (WIDTH, WIDTH),
        "attention/linear_1": (2 * WIDTH, WIDTH),
        "attention/linear_2": (WIDTH, WIDTH),
        "ffn/linear_0": (4 * WIDTH, WIDTH),
        "ffn/linear_1": (WIDTH, 4 * WIDTH),
    }
    for layer in range(LAYERS):
        for name, (outputs, inputs) in shapes.items():
            weights[f"decoder/layer_{layer}/{name}/weight"] = matrix(outputs, inputs)
            weights[f"decoder/layer_{layer}/{name}/bias"] = vector(outputs)
        for name in ("self_attention", "attention", "ffn"):
            weights[f"decoder/layer_{layer}/{name}/layer_norm/gamma"] = vector(WIDTH, 1.0)
            weights[f"decoder/layer_{layer}/{name}/layer_norm/beta"] = vector(WIDTH)
    return weights


def write(folder: Path, weights: Weights) -> Path:
    """A folder as CTranslate2 has it."""
    types = {"int8": 1, "int16": 2, "float16": 4}

    def text(name: str) -> bytes:
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(weights))
    for name, array in weights.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += text(name) + shape + struct.pack("<BI", types[array.dtype.name], array.nbytes) + array.tobytes()
    (folder / "model.bin").write_bytes(data + struct.pack("<I", 0))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [3, -1], "suppress_ids_begin": [5, END]}))
    return folder


def states(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whisper"), small_weights(1, 4.0))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> WhisperDecoder:
    return WhisperDecoder(folder, states(SILENCE), end=END)


def plain_logits(weights: Weights, tokens: list[int], memory_SC: Array) -> Array:
    """The logits after each token [T, V], in float64 and without caches."""
    given = {name.removeprefix("decoder/"): array.astype(np.float64) for name, array in weights.items()}

    def linear(x: Any, name: str) -> Any:
        return x @ given[f"{name}/weight"].T + given[f"{name}/bias"]

    def norm(x: Any, name: str) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * given[f"{name}/gamma"] + given[f"{name}/beta"]

    def attend(queries: Any, keys: Any, values: Any, *, causal: bool) -> Any:
        heard, depth = [], WIDTH // HEADS
        for head in range(HEADS):
            part = slice(head * depth, (head + 1) * depth)
            scores = queries[:, part] @ keys[:, part].T / math.sqrt(depth)
            if causal:
                scores = np.where(np.tri(len(scores), dtype=bool), scores, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            heard.append(shares / shares.sum(-1, keepdims=True) @ values[:, part])
        return np.concatenate(heard, axis=1)

    x = given["embeddings/weight"][tokens] + given["position_encodings/encodings"][: len(tokens)]
    for layer in range(LAYERS):
        name = f"layer_{layer}/self_attention"
        parts = np.split(linear(norm(x, f"{name}/layer_norm"), f"{name}/linear_0"), 3, axis=1)
        x = x + linear(attend(*parts, causal=True), f"{name}/linear_1")
        name = f"layer_{layer}/attention"
        queries = linear(norm(x, f"{name}/layer_norm"), f"{name}/linear_0")
        parts = np.split(linear(memory_SC, f"{name}/linear_1"), 2, axis=1)
        x = x + linear(attend(queries, *parts, causal=False), f"{name}/linear_2")
        name = f"layer_{layer}/ffn"
        inner = linear(norm(x, f"{name}/layer_norm"), f"{name}/linear_0")
        x = x + linear(inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2, f"{name}/linear_1")
    return np.asarray(norm(x, "layer_norm") @ given["embeddings/weight"].T)


def plain_search(
    decoder: WhisperDecoder, memory: list[Array], beam: int, most: int, guess: Sequence[int] = ()
) -> Found:
    """The search as it is described, every path read anew."""

    def logs(tokens: list[int]) -> Array:
        read, _ = decoder._read([[*START, *tokens]], decoder._nothing, memory, None)
        logits = read[-1].astype(np.float64)
        if not tokens:
            logits[[5, END]] = -1e9
        return np.asarray(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))

    path: list[int] = []
    total = 0.0
    while len(path) < most:
        scores = logs(path)
        guessed = path == list(guess[: len(path)]) and [*path, scores.argmax()] == list(guess[: len(path) + 1])
        if not guessed and scores.max() <= math.log(SURE):
            break
        total += scores.max()
        if scores.argmax() == END:
            return Found(path, total / (len(path) + 1), True)
        path = [*path, int(scores.argmax())]
    running = [(total, path)]
    ended: list[tuple[float, list[int]]] = []
    while len(running[0][1]) < most and len(ended) < beam:
        every = [
            (score + each, [*tokens, token]) for score, tokens in running for token, each in enumerate(logs(tokens))
        ]
        every.sort(reverse=True)
        ended += [(score, tokens) for score, tokens in every[:beam] if tokens[-1] == END]
        running = [(score, tokens) for score, tokens in every if tokens[-1] != END][:beam]
    score, tokens = max(ended or running, key=lambda each: each[0] / len(each[1]))
    return Found(tokens[:-1] if ended else tokens, score / len(tokens), bool(ended))


def test_the_logits_are_those_of_plain_numpy(folder: Path, decoder: WhisperDecoder) -> None:
    weights = {name: array for name, array in small_weights(1, 4.0).items() if name.startswith("decoder/")}
    tokens = [*START, 7, 9, 2, 7]
    heard = states(5, seed=2)
    memory = decoder.remember(heard)
    logits_TV, _ = decoder._read([tokens], decoder._nothing, memory, None)
    expected_TV = plain_logits(weights, tokens, np.concatenate([heard, states(SILENCE)[5:]]))
    text = [token for token in range(END + 1) if token != 3]
    error = logits_TV[:, text] - expected_TV[:, text]
    assert np.sqrt((error**2).mean()) < 0.02 * expected_TV.std()  # 8 bits
    assert (logits_TV[:, [3, *range(END + 1, VOCABULARY)]] < -1e8).all()


def test_the_silence_says_nothing_of_the_language(decoder: WhisperDecoder) -> None:
    weights = {name: array for name, array in small_weights(1, 4.0).items() if name.startswith("decoder/")}
    languages = [END + 1, END + 2, END + 3]  # tokens that are no text
    found = set()
    for seed in range(20, 60):
        heard = states(5, seed=seed)
        expected = plain_logits(weights, [*START], heard)[-1, languages]
        likeliest = decoder.likeliest(decoder.remember(heard), START, languages)
        assert expected[languages.index(likeliest)] > expected.max() - 0.1  # 8 bits
        found.add(likeliest)
    assert len(found) > 1


def test_what_was_seen_need_not_be_read_again(decoder: WhisperDecoder) -> None:
    memory = decoder.remember(states(20, seed=3))  # longer than the silence
    together, _ = decoder._read([[*START, 7, 9, 2]], decoder._nothing, memory, None)
    _, seen = decoder._read([[*START, 7]], decoder._nothing, memory, None)
    first, seen = decoder._read([[9]], seen, memory, None)
    seen = [np.repeat(state, 2, axis=0) for state in seen]
    both, _ = decoder._read([[2], [4]], seen, memory, None)
    np.testing.assert_allclose(np.stack([first[0], both[0]]), together[-2:], atol=1e-3)


@pytest.mark.parametrize("sureness", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("beam", [1, 3])
def test_the_search_is_the_one_described(tmp_path: Path, sureness: float, beam: int) -> None:
    decoder = WhisperDecoder(write(tmp_path, small_weights(1, sureness)), states(SILENCE), end=END)
    for seed in range(6):
        memory = decoder.remember(states(6, seed=20 + seed))
        right = decoder.search(memory, START, beam=beam, most=12).tokens
        for guess in ([], right, right[:2], [*right, 4, 4], [*right[:-1], 4], [4, *right], [END], [39] * 30):
            found = decoder.search(memory, START, guess=guess, beam=beam, most=12)
            expected = plain_search(decoder, memory, beam, 12, guess)
            assert (found.tokens, found.ended) == (expected.tokens, expected.ended)
            assert found.log_probability == pytest.approx(expected.log_probability, abs=0.02)


def test_a_guess_that_is_not_the_likeliest_changes_nothing(decoder: WhisperDecoder) -> None:
    for seed in range(20, 28):
        memory = decoder.remember(states(6, seed=seed))
        found = decoder.search(memory, START, beam=3, most=12)
        again = decoder.search(memory, START, guess=[39, 4, 4], beam=3, most=12)  # 39 is no text
        assert (again.tokens, again.ended) == (found.tokens, found.ended)


def test_a_good_guess_takes_one_step(decoder: WhisperDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = next(
        memory
        for memory in (decoder.remember(states(6, seed=seed)) for seed in range(20, 60))
        if (found := sure(decoder, memory)) and len(found.tokens) > 2
    )
    tokens = decoder.search(memory, START, beam=3, most=12).tokens
    steps, read = 0, decoder._read

    def counted(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        return read(*given)

    monkeypatch.setattr(decoder, "_read", counted)
    decoder.search(memory, START, guess=tokens, beam=3, most=12)
    assert steps == 1
    decoder.search(memory, START, beam=3, most=12)
    assert steps == 1 + 1 + len(tokens)


def sure(decoder: WhisperDecoder, memory: list[Array]) -> Found | None:
    """What is found where no beam is needed."""
    found = plain_search(decoder, memory, 1, 12)
    path = [*START, *found.tokens]
    logits, _ = decoder._read([path], decoder._nothing, memory, None)
    rows = logits[len(START) - 1 :].astype(np.float64)
    rows[0, [5, END]] = -1e9
    shares = np.exp(rows - rows.max(1, keepdims=True))
    return found if found.ended and (shares.max(1) / shares.sum(1)).min() > SURE else None


def test_it_stops_at_the_length_asked_for_and_where_its_positions_end(decoder: WhisperDecoder) -> None:
    for seed in range(20, 28):
        memory = decoder.remember(states(6, seed=seed))
        found = decoder.search(memory, START, beam=3, most=2)
        assert len(found.tokens) <= 2
        long = decoder.search(memory, [31] * (POSITIONS - 3), guess=[4] * 9, beam=3, most=12)
        assert len(long.tokens) <= 3


def test_cancelling(decoder: WhisperDecoder) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        decoder.search(decoder.remember(states(6)), START, beam=3, most=12, cancel=cancel)


def test_several_threads_find_the_same(decoder: WhisperDecoder) -> None:
    memories = [decoder.remember(states(6, seed=seed)) for seed in range(20, 28)]
    alone = [decoder.search(memory, START, beam=3, most=12) for memory in memories]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda memory: decoder.search(memory, START, beam=3, most=12), memories)) == alone


@pytest.mark.parametrize("damage", ["cut", "quantised", "empty", "settings"])
def test_weights_that_are_not_understood_are_refused(tmp_path: Path, damage: str) -> None:
    weights = small_weights(0, 1.0)
    if damage == "quantised":
        weights["decoder/layer_0/ffn/linear_0/weight_scale"] = np.ones(4, np.float16)
    write(tmp_path, weights)
    data = (tmp_path / "model.bin").read_bytes()
    if damage in ("cut", "empty"):
        (tmp_path / "model.bin").write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    if damage == "settings":
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackendError, match="not understood"):
        WhisperDecoder(tmp_path, states(SILENCE), end=END)


# ---------------------------------------------------------------- the real one


@pytest.mark.weights
@pytest.mark.parametrize("text", ["Why is the sky blue?", "Set a timer for ten minutes."])
def test_ctranslate2_finds_the_same(text: str) -> None:
    from hibari import Hibari

    whisper = WhisperTranscriber(Store().verified(catalogue()["whisper-base"]))
    voice = Hibari()
    spoken = np.concatenate([np.ravel(piece) for piece in voice.stream(text)]).astype(np.float32)
    states_SD = whisper._encode(np.asarray(soxr.resample(spoken, voice.sample_rate, whisper.rate), np.float32), 0.5)
    start = [whisper._start, whisper._language_token("en"), whisper._transcribe, whisper._untimed]
    everything = np.concatenate([states_SD, whisper._silence_SD[len(states_SD) :]])
    (theirs,) = whisper._model.generate(whisper._view(everything[None]), [start], beam_size=1)
    memory = whisper._decoder.remember(states_SD)
    ours = whisper._decoder.search(memory, start, beam=1, most=40)
    assert ours.tokens == theirs.sequences_ids[0]
    whisper.close()
