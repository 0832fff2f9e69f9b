"""However a stream is cut and with whomever it shares the encoders, it gives the codes of the whole."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import released_tokenizer
from oracles.released_tokenizer import speech_like
from stepaudio.errors import BackendError, InputError
from stepaudio.tokenizer import checkpoint, linguistic
from stepaudio.tokenizer.branch import BranchStream, encode
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.tokenizer.gain import RunningGain
from stepaudio.tokenizer.lfr import LfrFrontend, LfrStream
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.tokenizer.quantize import Codebook, FiniteScalarQuantizer
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder, SanmState
from stepaudio.tokenizer.semantic import LIVE, LONG, RELEASED, WindowBranch, WindowPlan, WindowSegmenter
from stepaudio.tokenizer.streaming import Batcher, DualStream

AUDIO = speech_like(2.5, seed=3)
cuts = st.lists(st.integers(0, len(AUDIO)), max_size=12).map(sorted)


def pieces(samples, at):
    return np.split(samples, at)


def own_branch(skip, chunk, quantizer_seed):
    """A small branch of our own kind: 60 ms features with a codebook, or 40 ms ones with FSQ."""
    torch.manual_seed(quantizer_seed)
    stack = skip + 1
    config = SanmConfig(input_dim=80 * stack, dim=32, heads=4, ffn_dim=64, blocks=2, kernel=7, chunk=chunk)
    quantizer = Codebook(torch.randn(1024, 32)) if skip == 6 else FiniteScalarQuantizer((8, 8, 8, 8), 32)
    shift = np.full(80 * stack, -10, dtype=np.float32)
    return SanmBranch(LfrFrontend(shift, np.full_like(shift, 0.3), stack, skip), SanmEncoder(config), quantizer)


@pytest.fixture(scope="module")
def own():
    torch.set_num_threads(1)
    with DualTokenizer(own_branch(6, 4, 0), own_branch(4, 6, 1)) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tokenizer")
    released_tokenizer.write(folder, released_tokenizer.Sizes())
    with DualTokenizer.load(folder) as tokenizer:
        yield tokenizer


# ------------------------------------------------------------------ one branch


@settings(max_examples=25, deadline=None)
@given(cuts)
def test_linguistic_stream_is_the_whole(released, at):
    stream = BranchStream(released.linguistic)
    streamed = np.concatenate([*(stream.push(piece) for piece in pieces(AUDIO, at)), stream.flush()])
    assert streamed.tolist() == encode(released.linguistic, AUDIO).tolist()


@settings(max_examples=10, deadline=None)
@given(cuts, st.sampled_from([LIVE, WindowPlan(stretch=12_800, left=6400, right=3200, first=16_000)]))
def test_semantic_stream_is_the_whole(released, at, plan):
    branch = released.semantic.with_plan(plan)
    stream = BranchStream(branch)
    streamed = np.concatenate([*(stream.push(piece) for piece in pieces(AUDIO, at)), stream.flush()])
    assert streamed.tolist() == encode(branch, AUDIO).tolist()


def test_a_stream_can_be_used_again(own):
    stream = BranchStream(own.linguistic)
    first = [*stream.push(AUDIO), *stream.flush()]
    stream.push(AUDIO[:5000])
    stream.reset()
    assert [*stream.push(AUDIO), *stream.flush()] == first


@settings(deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=8).map(sorted), st.integers(0, 9000))
def test_features_do_not_depend_on_the_cuts(at, length):
    shift = np.zeros(560, dtype=np.float32)
    frontend = LfrFrontend(shift, shift + 1)
    stream = LfrStream(frontend)
    streamed = np.concatenate([*(stream.push(p) for p in pieces(AUDIO[:length], at)), stream.flush()])
    np.testing.assert_allclose(streamed, frontend(AUDIO[:length]), rtol=0, atol=1e-3)
    assert len(streamed) == -(-frontend.fbank.frame_count(length) // 6)


def test_sanm_batches_are_the_single_sessions():
    torch.manual_seed(0)
    encoder = SanmEncoder(SanmConfig(input_dim=24, dim=16, heads=2, ffn_dim=32, blocks=3)).eval()
    x_BTI = torch.randn(3, 22, 24)
    lengths = torch.tensor([22, 9, 3])
    with torch.inference_mode():
        together, _ = encoder(x_BTI, lengths, encoder.initial_state(3))
        for b, length in enumerate(lengths.tolist()):
            alone, _ = encoder(x_BTI[b : b + 1, :length], None, encoder.initial_state())
            torch.testing.assert_close(together[b, :length], alone[0], atol=1e-5, rtol=1e-5)


def test_sanm_states_stack_and_unstack():
    encoder = SanmEncoder(SanmConfig(input_dim=24, dim=16, heads=2, ffn_dim=32, blocks=2)).eval()
    state = encoder(torch.randn(3, 8, 24), None, encoder.initial_state(3))[1]
    again = SanmState.stack(state.unstack())
    for name in ("position", "left_BLI", "keys_values", "filled"):
        assert torch.equal(getattr(again, name), getattr(state, name))


# ------------------------------------------------------------------ windows


def clip_positions(clips):
    """A clip encoder that tells where each code lies: samples carry their own index."""
    return [clip[::640].astype(np.int64)[: -(-(len(clip) // 160) // 4)] // 640 for clip in clips]


@settings(deadline=None)
@given(
    st.integers(0, 120_000),
    st.lists(st.integers(0, 120_000), max_size=6).map(sorted),
    st.builds(
        WindowPlan,
        stretch=st.integers(1, 40).map(lambda n: 640 * n),
        left=st.integers(0, 40).map(lambda n: 640 * n),
        right=st.integers(0, 9000),
        first=st.integers(0, 60).map(lambda n: 640 * n),
    ),
)
def test_windows_give_every_code_once_and_in_place(length, at, plan):
    samples = np.arange(length, dtype=np.float32)
    stream = BranchStream(WindowBranch(clip_positions, plan))
    codes = np.concatenate([*(stream.push(p) for p in pieces(samples, [min(a, length) for a in at])), stream.flush()])
    whole = -(-(length // 160) // 4)
    # Only an end too short to encode may be missing.
    assert codes.tolist() == list(range(len(codes)))
    assert whole - len(codes) in (0, 1)
    if length % plan.stretch >= 480 and plan.first == 0:
        assert len(codes) == whole


@pytest.mark.parametrize(
    ("plan", "seconds", "windows"),
    [(LONG, 30, 1), (LONG, 31, 2), (LONG, 56.1, 3), (RELEASED, 30, 1), (RELEASED, 61, 3)],
)
def test_windows_of_the_named_plans(plan, seconds, windows):
    segmenter = WindowSegmenter(plan)
    segments = segmenter.push(np.zeros(round(seconds * 16000), dtype=np.float32)) + segmenter.flush()
    assert len(segments) == windows
    assert max(len(segment.clip) for segment in segments) <= 30 * 16000


@pytest.mark.parametrize("plan", [LIVE, LONG, RELEASED])
def test_a_window_holds_the_sound_around_its_stretch(plan):
    samples = np.arange(58 * 16_000, dtype=np.float32)
    segmenter = WindowSegmenter(plan)
    stretch, start = plan.first or plan.stretch, 0
    whole, last = segmenter.push(samples), segmenter.flush()
    for segment in whole:
        begin = max(0, start - plan.left)
        assert (segment.clip[0], segment.clip[-1]) == (begin, start + stretch + plan.right - 1)
        assert (segment.skip, segment.take) == ((start - begin) // 640, stretch // 640)
        start, stretch = start + stretch, plan.stretch
    assert [(segment.clip[0], segment.clip[-1]) for segment in last] == [(max(0, start - plan.left), len(samples) - 1)]


def test_live_look_ahead():
    """A stretch of 240 ms is encoded once 220 ms after it are there."""
    segmenter = WindowSegmenter(LIVE)
    assert segmenter.push(np.zeros(7360, dtype=np.float32)) == []
    assert len(segmenter.push(np.zeros(1, dtype=np.float32))) == 1


# ------------------------------------------------------------------ gain


@settings(deadline=None)
@given(st.lists(st.integers(0, 4000), max_size=8).map(sorted), st.floats(0.001, 1.0))
def test_gain_does_not_depend_on_the_cuts(at, volume):
    samples = AUDIO[:4000] * np.float32(volume)
    gain = RunningGain()
    out = np.concatenate([gain.push(piece) for piece in pieces(samples, at)])
    assert np.array_equal(out, RunningGain().push(samples))
    assert np.abs(out).max() <= 0.9991


def test_gain_follows_a_simple_loop():
    gain = RunningGain(start=0.2, half_life=0.05)
    samples = AUDIO[:2000] * np.float32(0.5)
    peak, expected = 0.2, []
    for n, x in enumerate(samples):
        peak = max(peak, abs(float(x)))
        expected.append(0.999 * float(x) / max(peak, 0.01))
        if n % 160 == 159:
            peak *= 0.5 ** (0.01 / 0.05)
    np.testing.assert_allclose(gain.push(samples), expected, rtol=1e-4)


def test_gain_recovers_after_a_loud_sound():
    gain = RunningGain(half_life=1.0)
    gain.push(np.ones(160, dtype=np.float32))
    quiet = np.full(10 * 16000, 0.05, dtype=np.float32)
    out = gain.push(quiet)
    assert out[0] == pytest.approx(0.05, rel=0.02)
    assert out[-1] == pytest.approx(0.999, rel=0.02)


# ------------------------------------------------------------------ both branches


@settings(max_examples=15, deadline=None)
@given(cuts)
def test_dual_stream_is_live_encoding(own, at):
    stream = own.stream()
    parts = [stream.push(piece) for piece in pieces(AUDIO, at)]
    for part in parts:
        assert len(part.linguistic) * 3 == len(part.semantic) * 2
    total = sum([stream.flush()], start=sum(parts[1:], start=parts[0]))
    whole = own.encode(AUDIO, mode="live")
    assert total.tokens().tolist() == whole.tokens().tolist()
    assert len(whole.linguistic) == -(-248 // 6)


def test_released_dual_stream_is_live_encoding(released):
    stream = released.stream()
    total = stream.push(AUDIO[:0])
    for piece in pieces(AUDIO, range(320, len(AUDIO), 320)):
        total += stream.push(piece)
    total += stream.flush()
    assert total.tokens().tolist() == released.encode(AUDIO, mode="live").tokens().tolist()


def test_groups_come_as_soon_as_they_can(own):
    """Both small branches step by 240 ms; a 40 ms feature needs 5 ms more for its last frame."""
    stream = own.stream()
    arrived = []
    for start in range(0, 16000, 320):
        arrived.append(len(stream.push(AUDIO[start : start + 320]).linguistic))
    assert arrived[:13] == [0] * 12 + [4]
    assert sum(arrived) == 16


def test_sessions_share_the_encoders(own):
    """Sessions that push at once from many threads get the codes they would get alone."""
    voices = [speech_like(1.5, seed=seed) for seed in range(6)]
    expected = [own.encode(voice, mode="live").tokens().tolist() for voice in voices]
    got = [None] * len(voices)
    start = threading.Barrier(len(voices))

    def talk(index):
        stream = own.stream()
        start.wait(10)
        total = stream.push(voices[index][:0])
        for piece in pieces(voices[index], range(320 + 7 * index, len(voices[index]), 640)):
            total += stream.push(piece)
        got[index] = (total + stream.flush()).tokens().tolist()

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(len(voices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == expected


class CountingBranch:
    """Codes are segment values; notes how many segments came in each call and can be held up."""

    codes, codes_per_second = 10, 1.0

    def __init__(self):
        self.calls, self.go = [], threading.Event()

    def segmenter(self):
        raise NotImplementedError

    def encode(self, segments):
        self.go.wait(10)
        self.calls.append(len(segments))
        if -1 in segments:
            raise ValueError("bad segment")
        return [np.array([segment]) for segment in segments]


def test_batcher_takes_all_that_wait():
    branch = CountingBranch()
    batcher = Batcher(branch)
    first = batcher.submit([0])
    while not batcher._line.empty():  # the thread has taken the first and is held up in it
        threading.Event().wait(0.001)
    rest = [batcher.submit([i, i]) for i in range(1, 5)]
    branch.go.set()
    assert batcher.result(first).tolist() == [0]
    assert [batcher.result(future).tolist() for future in rest] == [[i, i] for i in range(1, 5)]
    assert branch.calls == [1, 8]
    batcher.close()
    with pytest.raises(BackendError):
        batcher.submit([1])


def test_batcher_survives_an_error():
    branch = CountingBranch()
    branch.go.set()
    batcher = Batcher(branch)
    with pytest.raises(ValueError, match="bad segment"):
        batcher.result(batcher.submit([-1]))
    assert batcher.result(batcher.submit([3])).tolist() == [3]
    batcher.close()


def test_a_stream_starts_anew_when_an_encoder_fails(own):
    class Breaking(WindowBranch):
        broken = True

        def encode(self, segments):
            if self.broken and segments:
                raise RuntimeError("out of memory")
            return super().encode(segments)

    branch = Breaking(clip_positions, LIVE)
    stream = DualStream(Batcher(own.linguistic), Batcher(branch))
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.push(AUDIO)
    branch.broken = False
    total = stream.push(AUDIO) + stream.flush()
    assert total.linguistic.tolist() == own.encode(AUDIO, mode="live").linguistic.tolist()


@pytest.mark.parametrize(
    "bad", [np.zeros(10), np.zeros((2, 5), dtype=np.float32), np.array([np.nan], dtype=np.float32), [0.0]]
)
def test_bad_samples_are_refused_and_not_kept(own, bad):
    stream = own.stream()
    with pytest.raises(InputError):
        stream.push(bad)
    total = stream.push(AUDIO) + stream.flush()
    assert total.tokens().tolist() == own.encode(AUDIO, mode="live").tokens().tolist()


def held_bytes(thing, seen=None):
    """Bytes of all arrays and tensors that can be reached from an object, encoders excepted."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, torch.nn.Module | Batcher | LfrFrontend):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor | np.ndarray):
        base = thing.base if isinstance(thing, np.ndarray) and thing.base is not None else thing
        return base.nbytes
    if isinstance(thing, list | tuple):
        return sum(held_bytes(item, seen) for item in thing)
    return sum(held_bytes(item, seen) for item in getattr(thing, "__dict__", {}).values())


def test_ten_minutes_in_constant_memory(own):
    windows = WindowBranch(clip_positions, LIVE)
    with DualTokenizer(own.linguistic, windows) as tokenizer:
        stream = tokenizer.stream()
        minute = speech_like(60)
        sizes, codes = [], 0
        for _ in range(10):
            codes += len(stream.push(minute).linguistic)
            sizes.append(held_bytes(stream))
        assert codes >= 9990
        assert max(sizes[1:]) <= 1.5 * sizes[0] < 2_000_000


# ------------------------------------------------------------------ our own checkpoint


def test_own_checkpoint_round_trip(tmp_path, own):
    checkpoint.save_branch(tmp_path / checkpoint.LINGUISTIC, own.linguistic)
    checkpoint.save_branch(tmp_path / checkpoint.SEMANTIC, own.semantic)
    with DualTokenizer.load(tmp_path) as loaded:
        assert loaded.encode(AUDIO).tokens().tolist() == own.encode(AUDIO).tokens().tolist()


def test_own_checkpoint_that_is_damaged(tmp_path, own):
    path = tmp_path / checkpoint.LINGUISTIC
    checkpoint.save_branch(path, own.linguistic)
    path.write_bytes(path.read_bytes().replace(b'\\"dim\\": 32', b'\\"dim\\": 64'))
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_branch(path)
    path.write_bytes(b"nothing of use")
    with pytest.raises(InputError, match="damaged"):
        DualTokenizer.load(tmp_path)


def test_released_tail_rule():
    assert linguistic.released_length(3840 * 2 + 880) is None
    assert linguistic.released_length(3840 * 2 + 879) == 8
