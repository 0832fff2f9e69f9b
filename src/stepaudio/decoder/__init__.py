"""The speech decoder: audio tokens in, waveform out.

- `flow`        conditional flow matching: tokens, speaker and prompt to mel frames, for both generations
- `encoder`     both token encoders; `dit` and `unet` the networks that estimate the flow
- `tokens`      interleaved audio tokens to rows at 25 Hz
- `streaming`   speech as its tokens come: chunks, look-ahead, cross-fade
- `checkpoint`  released files and our own, in and out
- `layers`      what the networks share
"""
