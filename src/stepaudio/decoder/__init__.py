"""The speech decoder: audio tokens in, waveform out.

- `flow`        conditional flow matching: tokens, speaker and prompt to mel frames, for both generations
- `solver`      following a flow: the time grid, Euler, guidance, noise
- `encoder`     both token encoders; `dit` and `unet` the networks that estimate the flow
- `tokens`      interleaved audio tokens to rows at 25 Hz
- `chunks`      mel frames as their tokens come; `streaming` speech as they do: a vocoder behind them
- `checkpoint`  released files and our own, in and out
- `layers`      what the networks of the flow share
- `vocoder`     HiFT, mel to waveform, of both generations; `vocos` a small one; `source` the sines it begins with
- `convolution` convolutions that take a signal in pieces; `stft` the same for the Fourier transform
- `mel`         both mel spectrograms; `speaker` CAM++: a clip to the vector that says who speaks
- `tempo`       faster and slower speech of the same pitch
- `weight_norm` released vocoder files, folded and split
"""
