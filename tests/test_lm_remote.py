"""The completion client against llama.cpp's own HTTP server, on loopback, with a small random model."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

from lm_models import tiny_tokenizer
from released_models import clip, write_chat, write_tokenizer
from stepaudio.errors import BackendError, BusyError, Cancelled, InputError
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.grammar import AudioGrammar, TextGrammar
from stepaudio.lm.prompts import Prompts, Turn
from stepaudio.lm.remote import RemoteEngine, _ids
from stepaudio.speech.roles import Finish, Message, Sampling, TextDelta
from stepaudio.speech.step_audio.listener import StepAudioResponder, StepAudioTranscriber

gguf = pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")

WIDTH, FF, HEADS, CONTEXT = 64, 128, 4, 512
PARAMS = SamplingParams(max_tokens=10, temperature=1.0, top_k=0, seed=4, stop=())


def write_model(path, *, writes_audio=True):
    """A random Llama with our vocabulary, text and audio block; greedy replies are text unless it `writes_audio`."""
    tokenizer = tiny_tokenizer()
    text, size = tokenizer.vocabulary.text, tokenizer.vocabulary.audio.stop
    pieces = tokenizer._pieces
    names = [pieces.IdToPiece(i) for i in range(text)] + [f"<audio_{i}>" for i in range(size - text)]
    kinds = [gguf.TokenType.NORMAL] * text + [gguf.TokenType.USER_DEFINED] * (size - text)
    for i in range(text):
        if pieces.IsByte(i):
            kinds[i] = gguf.TokenType.BYTE
        elif pieces.IsControl(i) or pieces.IsUnknown(i):
            kinds[i] = gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([pieces.GetScore(i) if i < text else 0.0 for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (size, WIDTH), "output": (size, WIDTH)}
    shapes |= {f"blk.0.attn_{n}": (WIDTH, WIDTH) for n in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (FF, WIDTH), "blk.0.ffn_up": (FF, WIDTH), "blk.0.ffn_down": (WIDTH, FF)}
    for name, shape in shapes.items():
        weight = random.normal(0, 0.3, shape).astype(np.float32)
        if name == "output" and not writes_audio:
            weight[text:] = weight[:5] = 0
            weight[[i for i in range(text) if pieces.IsByte(i)]] = 0  # llama.cpp tells no ids of half characters
        writer.add_tensor(f"{name}.weight", weight)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.verbosity = -1
    return xllamacpp.Server(params)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("remote") / "tiny.gguf"
    write_model(path)
    return serve(path)


@pytest.fixture
def engine(server):
    engine = RemoteEngine(f"{server.listening_address}/v1", "tiny", timeout=30)
    yield engine
    engine.close()


def test_ids_go_in_and_ids_come_back(engine):
    prompt = Prompts(tiny_tokenizer()).chat([Turn("user", ["hello ", [401, 1500]])])
    seen: list[int] = []
    reply = engine.generate(prompt, PARAMS, on_token=seen.append)
    assert reply.tokens == seen
    assert len(reply.tokens) == 10
    assert reply.reason == "length"
    assert reply.prompt_tokens == len(prompt)
    assert all(0 <= token < tiny_tokenizer().vocabulary.audio.stop for token in reply.tokens)
    again = engine.generate(prompt, PARAMS)
    assert again.tokens == reply.tokens
    assert again.cached_tokens > 0  # the server keeps the prefix too


def test_a_stop_id_ends_the_reply(engine):
    tokens = engine.generate([1, 4, 50], PARAMS).tokens
    stopping = SamplingParams(max_tokens=10, temperature=1.0, top_k=0, seed=4, stop=(tokens[3],))
    reply = engine.generate([1, 4, 50], stopping)
    assert reply.reason == "stop"
    assert reply.tokens == tokens[: tokens.index(tokens[3])]


def test_a_reply_that_breaks_the_grammar_is_refused(engine):
    vocabulary = tiny_tokenizer().vocabulary
    with pytest.raises(BackendError, match="grammar"):
        engine.generate([1, 4, 50], PARAMS, grammar=AudioGrammar(vocabulary))
    with pytest.raises(BackendError, match="grammar"):  # mostly audio, as most of the vocabulary is
        engine.generate([1, 4, 50], PARAMS, grammar=TextGrammar(vocabulary))


def test_cancelling_leaves_the_server_free(engine):
    cancel = threading.Event()
    long = SamplingParams(max_tokens=400, temperature=1.0, seed=1, stop=())
    with pytest.raises(Cancelled):
        engine.generate([1, 4, 50], long, on_token=lambda _: cancel.set(), cancel=cancel)
    assert len(engine.generate([1, 4, 50], PARAMS).tokens) == 10


def test_a_generation_is_left_early_or_cancelled(engine):
    long = SamplingParams(max_tokens=400, temperature=1.0, seed=1, stop=())
    left = engine.submit([1, 4, 50], long)
    for _ in left:
        break
    assert left.reply is None
    cancelled = engine.submit([1, 4, 50], long)
    tokens = iter(cancelled)
    next(tokens)
    cancelled.cancel()
    with pytest.raises(Cancelled):
        list(tokens)
    assert len(engine.generate([1, 4, 50], PARAMS).tokens) == 10


def test_a_chat_model_on_a_server_hears_and_answers(tmp_path):
    write_model(tmp_path / "text.gguf", writes_audio=False)
    server = serve(tmp_path / "text.gguf")
    folder, tokenizer = write_chat(tmp_path / "chat"), write_tokenizer(tmp_path / "tokenizer")
    (folder / "model.safetensors").unlink()  # config.json and tokenizer.model are enough
    where = f"{server.listening_address}/v1#tiny"
    transcriber = StepAudioTranscriber(folder, tokenizer, server=where)
    responder = StepAudioResponder(folder, tokenizer, server=where)
    assert transcriber._lm is responder._lm
    heard = transcriber.transcribe(clip())
    prompt = responder._lm.prompts.transcribe(responder._lm.hear(clip()))
    greedy = SamplingParams(max_tokens=4, temperature=0, guard_repetition=False)
    engine = RemoteEngine(f"{server.listening_address}/v1", "tiny")
    start = responder._lm.text.decode(engine.generate(prompt, greedy).tokens)
    assert heard.text.startswith(start.strip())
    assert start.strip()
    asked = [Message("user", "hello", audio=clip())]
    events = list(responder.respond(asked, sampling=Sampling(max_tokens=5, temperature=0)))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text
    assert isinstance(events[-1], Finish)
    assert events[-1].reason == "length"
    transcriber.close()
    responder.close()


def test_servers_that_cannot_be(tmp_path):
    folder = write_chat(tmp_path / "chat")
    with pytest.raises(InputError, match="http://HOST/v1#MODEL"):
        StepAudioResponder(folder, tmp_path, server="http://127.0.0.1:8000/v1")
    with pytest.raises(InputError, match="quantize"):
        StepAudioResponder(folder, tmp_path, server="http://127.0.0.1:8000/v1#tiny", quantize="int8")


def test_refusals_are_input_errors(engine):
    with pytest.raises(InputError, match="context"):
        engine.generate([5] * (CONTEXT + 1), PARAMS)
    with pytest.raises(InputError, match="invalid"):
        engine.generate([10**7], PARAMS)


def test_wrong_addresses_are_backend_errors(server):
    with pytest.raises(BackendError, match="404"):
        RemoteEngine(f"{server.listening_address}/nowhere", "tiny").generate([1], PARAMS)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening
        engine = RemoteEngine(f"http://127.0.0.1:{held.getsockname()[1]}", "tiny")
        with pytest.raises(BackendError, match="does not answer"):
            engine.generate([1], PARAMS)


def test_a_silent_server_can_be_left_and_times_out():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        cancel = threading.Event()
        timer = threading.Timer(0.1, cancel.set)
        timer.start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            RemoteEngine(url, "tiny", timeout=30).generate([1], PARAMS, cancel=cancel)
        assert time.monotonic() - started < 20  # far from the timeout
        with pytest.raises(BackendError, match="does not answer"):
            RemoteEngine(url, "tiny", timeout=0.2).generate([1], PARAMS)


def test_the_three_ways_to_tell_ids():
    assert _ids({"text": "ab", "token_ids": [7, 8]}) == [7, 8]
    assert _ids({"text": "ab", "logprobs": {"content": [{"id": 7}, {"id": 8}]}}) == [7, 8]
    assert _ids({"text": "ab", "logprobs": {"tokens": ["token_id:7", "token_id:8"]}}) == [7, 8]
    assert _ids({"text": "", "finish_reason": "stop"}) == []
    for silent in ({"text": "ab"}, {"text": "ab", "logprobs": {"tokens": ["a", "b"]}}):
        with pytest.raises(BackendError, match="does not tell"):
            _ids(silent)


def test_busy_is_told_from_broken():
    import httpx

    from stepaudio.lm.remote import _refusal

    assert isinstance(_refusal(httpx.Response(429, json={"error": {"message": "full"}})), BusyError)
    assert "gone" in str(_refusal(httpx.Response(500, text="gone")))
