"""Every metric against a hand-computed value, a published example or an independent implementation."""

from __future__ import annotations

import math
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stepaudio.errors import AudioError, InputError
from stepaudio.eval.items import Audio
from stepaudio.eval.metrics import intervals, pitch, rules, signal
from stepaudio.eval.metrics.agreement import krippendorff_alpha
from stepaudio.eval.metrics.errors import Errors, align, count_errors, is_transcript
from stepaudio.eval.metrics.matching import choice, contains, exact, has_answer, tokens
from stepaudio.eval.metrics.speaker import OnnxSpeakerEncoder, similarity

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8)


# ---------------------------------------------------------------- error rates


def test_errors_of_a_worked_example() -> None:
    errors = count_errors(["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "sit", "on", "mat", "today"])
    assert errors.total == 3
    assert errors.length == 6
    assert count_errors(["the", "cat", "sat"], ["the"]) == Errors(deletions=2, length=3)
    assert count_errors(["cat"], ["the", "cat", "sat"]) == Errors(insertions=2, length=1)


@given(WORDS.filter(bool), WORDS)
def test_errors_equal_jiwer(reference: list[str], hypothesis: list[str]) -> None:
    ours = count_errors(reference, hypothesis)
    theirs = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    assert ours.total == theirs.substitutions + theirs.deletions + theirs.insertions
    assert ours.total / ours.length == pytest.approx(theirs.wer)


@given(WORDS, WORDS)
def test_alignment_gives_back_both_sides_at_the_cost(reference: list[str], hypothesis: list[str]) -> None:
    steps = align(reference, hypothesis)
    assert [step.reference for step in steps if step.reference is not None] == reference
    assert [step.hypothesis for step in steps if step.hypothesis is not None] == hypothesis
    assert sum(step.edit != "equal" for step in steps) == count_errors(reference, hypothesis).total


def test_errors_add_up_to_a_corpus() -> None:
    assert Errors(1, 2, 3, 10) + Errors(1, 0, 0, 5) == Errors(2, 2, 3, 15)


def test_a_reply_is_no_transcript() -> None:
    reference = ["turn", "left"]
    reply = ["sure", "i", "can", "help", "you", "with", "that"]
    assert not is_transcript(count_errors(reference, reply), len(reply))
    assert is_transcript(count_errors(reference, ["turn", "right"]), 2)
    assert not is_transcript(count_errors(reference, []), 0)


# ---------------------------------------------------------------- intervals


def test_a_ratio_weighs_by_length() -> None:
    assert intervals.ratio([1, 3], [10, 10]).value == 0.2
    assert intervals.ratio([1, 0], [1, 9]).value == 0.1


def test_the_bootstrap_of_a_ratio_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 20, 200)
    errors = rng.binomial(lengths, 0.1)
    ours = intervals.ratio(errors, lengths, rounds=4000)
    theirs = stats.bootstrap(
        (errors, lengths),
        lambda e, n, axis: e.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        random_state=2,
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.high, abs=0.003)


def test_clusters_that_repeat_an_item_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 30)
    once = intervals.mean(values)
    thrice = intervals.mean(np.repeat(values, 3), np.repeat(np.arange(30), 3).tolist())
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    ratio_once, ratio_thrice = (
        intervals.ratio(np.abs(v), np.ones(len(v)), c, seed=3)
        for v, c in ((values, None), (np.repeat(values, 3), np.repeat(np.arange(30), 3).tolist()))
    )
    assert (ratio_once.low, ratio_once.high) == pytest.approx((ratio_thrice.low, ratio_thrice.high))


def test_the_mean_has_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 7.0, 7.5]
    found = intervals.mean(values)
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (15, 15), (81, 263)])
def test_a_share_has_wilsons_interval(hits: int, n: int) -> None:
    found = intervals.share([True] * hits + [False] * (n - hits))
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_wilsons_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17: 857, table I: 81 of 263 gives 0.2553 to 0.3662.
    found = intervals.share([True] * 81 + [False] * 182)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_a_share_of_clusters_that_repeat_is_that_of_the_clusters() -> None:
    hits = [True] * 7 + [False] * 13
    once = intervals.share(hits)
    clusters = [n for n in range(20) for _ in range(3)]
    thrice = intervals.share([hit for hit in hits for _ in range(3)], clusters)
    # The clustered variance alone would have 19 count (it divides by n - 1); a cluster counts for one at least.
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    none = intervals.share([False] * 60, clusters)
    assert none.high == pytest.approx(intervals.share([False] * 20).high)
    assert none.high > 0.1


def test_the_median_of_clusters() -> None:
    found = intervals.median([1, 2, 3, 4, 100], ["a", "b", "c", "d", "e"])
    assert found.value == 3
    assert found.low is not None
    assert found.low <= 3 <= (found.high or 0)
    assert intervals.median([1, 2], ["a", "a"]).low is None


def test_one_item_has_no_interval() -> None:
    for found in (intervals.ratio([1], [2]), intervals.mean([1.0])):
        assert found.low is None


def test_a_figure_needs_a_denominator() -> None:
    with pytest.raises(InputError, match="every reference is empty"):
        intervals.ratio([1, 1], [0, 0])
    with pytest.raises(InputError, match="clusters"):
        intervals.ratio([1, 1], [1, 1], ["a"])


def test_the_permutation_test_is_exact_when_it_can_be() -> None:
    # Five items, all worse by 1: of the 32 ways to swap, two are as extreme.
    found = intervals.paired([0] * 5, [1] * 5, ([1] * 5, [1] * 5))
    assert found.value == 1
    assert found.p == pytest.approx(2 / 32)
    assert found.second_lower == 0


def test_the_sampled_permutation_test_agrees_with_the_t_test() -> None:
    rng = np.random.default_rng(4)
    first = rng.normal(0, 1, 200)
    second = first + rng.normal(0.1, 1, 200)
    found = intervals.paired(first, second, (np.ones(200), np.ones(200)), rounds=4000)
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.03)


def test_equal_systems_do_not_differ() -> None:
    found = intervals.paired([1, 2, 3], [1, 2, 3], ([5, 5, 5], [5, 5, 5]))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.second_lower == 0.5


def test_mcnemar_by_hand() -> None:
    # 6 items only the first got, 1 only the second: p = 2 * (C(7,0) + C(7,1)) / 2^7 = 0.125.
    first = [True] * 6 + [False] + [True] * 10
    second = [False] * 6 + [True] + [True] * 10
    assert intervals.mcnemar(first, second) == pytest.approx(0.125)
    assert intervals.mcnemar(first, first) == 1


# ---------------------------------------------------------------- agreement


def test_alpha_of_krippendorffs_example() -> None:
    """Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", the example with missing data: four
    observers, twelve units; nominal 0.743, ordinal 0.815, interval 0.849."""
    n = None
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, n, n, n],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, n, 3],
        [n, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, n],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, n],
    ]
    assert krippendorff_alpha(ratings, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(ratings, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(ratings, "interval") == pytest.approx(0.849, abs=5e-4)


def test_alpha_where_it_has_no_meaning() -> None:
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[0, 1], [0, 1]]) == 1
    with pytest.raises(InputError, match="at least two raters"):
        krippendorff_alpha([[1, None], [None, 1]])


# ---------------------------------------------------------------- matching


def test_an_answer_is_found_as_words_in_a_row() -> None:
    assert has_answer("It is the River Thames, I believe.", ["River Thames"])
    assert not has_answer("The Thames is a river.", ["River Thames"])
    assert not has_answer("Amazonas", ["Amazon"])
    assert not has_answer("", ["Amazon"])
    assert not has_answer("anything", [""])


def test_numbers_have_one_form_in_the_default_rule() -> None:
    assert not has_answer("A pentagon has five sides.", ["5"])
    assert contains("A pentagon has five sides.", ["5"])
    assert contains("There are 3600 seconds.", ["three thousand six hundred"])
    assert contains("一个小时有3600秒。", ["三千六百"], "zh")
    assert not contains("一个小时有360秒。", ["三千六百"], "zh")


def test_chinese_answers_need_no_spaces() -> None:
    assert has_answer("法国的首都是巴黎。", ["巴黎"])


def test_tokens_as_in_dpr() -> None:
    # DPR splits letters, numbers and marks from every other visible character, after NFD, in lower case.
    assert tokens("Beyoncé's 2nd hit!") == ["beyonce\u0301", "'", "s", "2nd", "hit", "!"]
    assert tokens("AC/DC 北京") == ["ac", "/", "dc", "北", "京"]


def test_exact_match_is_squads() -> None:
    assert exact("The Eiffel Tower.", ["eiffel tower"])
    assert not exact("It is the Eiffel Tower.", ["eiffel tower"])


@pytest.mark.parametrize(
    ("reply", "picked"),
    [
        ("B", 1),
        ("b.", 1),
        ("答案是C。", 2),
        ("The answer is D, because it rained.", 3),
        ("A", 0),
        ("I would say a bus.", 1),
        ("Either A or B.", None),
        ("I don't know.", None),
        ("", None),
        ("On foot", 0),
    ],
)
def test_the_letter_that_a_reply_picks(reply: str, picked: int | None) -> None:
    assert choice(reply, ["on foot", "a bus", "a car", "a bicycle"]) == picked


@pytest.mark.parametrize(
    ("rule", "parts", "held"),
    [
        ("model_length:[2,4]", ["abc"], True),
        ("model_length:[2,4]", ["abcde"], False),
        ("model_length_word:[1,2]", ["one two"], True),
        ("model_length_word_each:[1,2]", ["one two", "one two three"], False),
        ("model_keyword:[honey, bee]", ["a bee makes honey"], True),
        ("model_keyword:[honey, bee]", ["a bee"], False),
        ("model_keyword_num:[1,1, red, blue]", ["red and blue"], False),
        ("model_keyword_num:[1,1, red, blue]", ["only red"], True),
        ("model_forbidden_word:[rest]", ["we sleep"], True),
        ("model_forbidden_word:[rest]", [], True),
        ("model_keyword:[rest]", [], False),
        ("model_startswith:好的", ["好的，我说。"], True),
        ("model_endswith:明白了吗", ["就是这样，明白了吗？"], True),
        ("model_not_endswith:明白了吗", ["就是这样，明白了吗？"], False),
        ("model_startswith:a\nmodel_endswith:c", ["abc"], True),
        ("model_startswith:a\nmodel_endswith:c", ["ab"], False),
        ("model_number:[2,3]", ["a", "b"], True),
        ("model_number:[2,3]", ["a"], False),
        ("model_constraint_punc:[!]", ["Yes!"], True),
        ("model_constraint_punc:[!]", ["Yes, sir!"], False),
    ],
)
def test_rules(rule: str, parts: list[str], held: bool) -> None:
    assert rules.holds(rule, parts) is held


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match="model_rhymes"):
        rules.holds("model_rhymes:[a]", ["b"])


# ---------------------------------------------------------------- sound


def noisy(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like speech: noise whose level rises and falls."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(seed).normal(0, 0.1, len(time))
    return (noise * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))).astype(np.float32)


@pytest.mark.parametrize("hertz", [81.0, 173.3, 220.0, 391.0])
def test_pitch_of_a_tone(hertz: float) -> None:
    time = np.arange(16_000) / 16_000
    voice = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6)).astype(np.float32)
    found = pitch.statistics(voice)
    assert found is not None
    assert found.median == pytest.approx(hertz, rel=0.002)
    assert found.spread < 0.05
    assert found.voiced > 0.95


def test_pitch_of_a_glide() -> None:
    """An octave in two seconds, of which the frames see all but the 67 ms of one: from 5 % to 95 % lies 0.9 of it, and
    its standard deviation is that of a uniform distribution."""
    octave = 12 * (2 - 0.067) / 2
    seconds = np.arange(2 * 16_000) / 16_000
    phase = 2 * np.pi * 150 * (2 ** (seconds / 2) - 1) * 2 / np.log(2)
    found = pitch.statistics(np.sin(phase).astype(np.float32))
    assert found is not None
    assert found.range == pytest.approx(0.9 * octave, abs=0.1)
    assert found.spread == pytest.approx(octave / math.sqrt(12), abs=0.05)


def test_noise_has_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    found = pitch.statistics(noise)
    assert found is None or found.voiced < 0.05
    with pytest.raises(AudioError):
        pitch.f0(np.zeros(100, np.float32))


def test_si_sdr_by_hand() -> None:
    clean = np.array([1.0, -1.0, 1.0, -1.0] * 100, np.float32)
    error = np.array([1.0, 1.0, -1.0, -1.0] * 100, np.float32)  # at right angles
    assert signal.si_sdr(clean, 3 * clean + 0.3 * error) == pytest.approx(20.0, abs=1e-4)
    assert signal.si_sdr(clean, 0.5 * clean) == math.inf


@pytest.mark.parametrize("delay", [-300, 0, 77, 640])
def test_a_codecs_delay_is_undone(delay: int) -> None:
    clean = noisy(2)
    late = np.concatenate([np.zeros(max(0, delay), np.float32), clean[max(0, -delay) :]])
    left, right = signal.aligned(clean, late)
    assert len(left) == len(right) >= len(clean) - abs(delay)
    assert np.array_equal(left, right)


def test_stoi_and_pesq_fall_with_noise() -> None:
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    clean = noisy(3)
    little, much = (clean + level * noisy(3, seed=1) for level in (0.1, 2.0))
    assert signal.stoi(clean, clean) == pytest.approx(1.0, abs=1e-6)
    assert 1 > signal.stoi(clean, little) > signal.stoi(clean, much) > 0
    # P.862.2's best score.
    assert signal.pesq(clean, clean) == pytest.approx(4.644, abs=0.001)
    assert signal.pesq(clean, little) > signal.pesq(clean, much) > 1


def test_pesq_is_not_defined_for_silence() -> None:
    pytest.importorskip("pesq")
    with pytest.raises(AudioError, match="not defined"):
        signal.pesq(np.zeros(16_000, np.float32), noisy(1))


def test_dnsmos_equals_speechmos() -> None:
    speechmos = pytest.importorskip("speechmos.dnsmos")
    from stepaudio.eval.metrics.mos import DnsMos

    path = Path(speechmos.__file__).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    ours = DnsMos(path)
    for seconds in (1.5, 9.5, 12.4):
        samples = np.clip(noisy(seconds), -1, 1)
        theirs = speechmos.run(samples, 16_000)
        found = ours.score(samples)
        wanted = (theirs["ovrl_mos"], theirs["sig_mos"], theirs["bak_mos"])
        assert (found.overall, found.signal, found.background) == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(AudioError):
        ours.score(np.zeros(0, np.float32))


# ---------------------------------------------------------------- speakers


def test_similarity_is_the_cosine() -> None:
    a, b = np.array([3.0, 4.0], np.float32), np.array([4.0, 3.0], np.float32)
    assert similarity(a, b) == pytest.approx(24 / 25)


def encoder_graph(path: Path, shape: list[int | str]) -> Path:
    """An encoder whose embedding is the mean over time."""
    onnx = pytest.importorskip("onnx")
    axis = 1
    wave = onnx.helper.make_tensor_value_info("in", onnx.TensorProto.FLOAT, shape)
    width: int | str = shape[-1] if len(shape) == 3 else 1
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, width])
    node = onnx.helper.make_node("ReduceMean", ["in"], ["out"], axes=[axis], keepdims=int(len(shape) == 2))
    graph = onnx.helper.make_graph([node], "encoder", [wave], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def test_an_encoder_on_waveforms(tmp_path: Path) -> None:
    encoder = OnnxSpeakerEncoder(encoder_graph(tmp_path / "wavlm.onnx", [1, "T"]))
    assert encoder.name == "wavlm"
    assert encoder.embed(np.full(16_000, -0.5, np.float32)) == pytest.approx([-1.0])


def test_an_encoder_on_filterbanks_gets_them_centred(tmp_path: Path) -> None:
    """The mean over time of a centred filterbank is but rounding, so the embedding has no common direction."""
    encoder = OnnxSpeakerEncoder(encoder_graph(tmp_path / "eres2net.onnx", [1, "F", 80]))
    assert encoder.dim == 80
    vector = encoder.embed(noisy(1))
    assert np.linalg.norm(vector) == pytest.approx(1.0)
    assert abs(vector.mean()) < 0.09  # that of a filterbank as it is would be 0.11, all of one sign
    assert (vector > 0).any()
    assert (vector < 0).any()


def test_a_graph_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[1, frames, 80\]"):
        OnnxSpeakerEncoder(encoder_graph(tmp_path / "x.onnx", [1, "F", 40]))
    (tmp_path / "y.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot be loaded"):
        OnnxSpeakerEncoder(tmp_path / "y.onnx")


def test_audio_is_known_by_its_content() -> None:
    samples = noisy(0.1)
    assert Audio(samples, 16_000).digest == Audio(samples.copy(), 16_000).digest
    assert Audio(samples, 16_000).digest != Audio(samples, 8_000).digest
