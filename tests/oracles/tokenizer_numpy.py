"""Both tokenizer branches in plain numpy, float64, one step at a time: slow, obvious, and sharing no code
with the package. Weights come as the arrays that were written to the released files, under the names they
have there."""

import numpy as np

# ------------------------------------------------------------------ linguistic


def fbank(samples):
    """Kaldi filterbank frames [F, 80]: every step of every frame written out."""
    frames = []
    n = np.arange(400)
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * n / 399)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(256), n) / 512)
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    low, high = mel(20.0), mel(8000.0)
    step = (high - low) / 81
    filters = np.zeros((80, 256))
    for band in range(80):
        left, centre, right = low + band * step, low + (band + 1) * step, low + (band + 2) * step
        for k in range(256):
            at = mel(k * 16000 / 512)
            if left < at <= centre:
                filters[band, k] = (at - left) / (centre - left)
            elif centre < at < right:
                filters[band, k] = (right - at) / (right - centre)
    for start in range(0, len(samples) - 400 + 1, 160):
        x = samples[start : start + 400].astype(np.float64) * 32768
        x = x - x.mean()
        y = x.copy()
        y[0] = x[0] - 0.97 * x[0]
        for i in range(1, 400):
            y[i] = x[i] - 0.97 * x[i - 1]
        power = np.abs(dft @ (y * hamming)) ** 2
        frames.append(np.log(np.maximum(filters @ power, np.finfo(np.float32).eps)))
    return np.array(frames).reshape(-1, 80)


def low_frame_rate(frames, shift, scale):
    """Stacks of 7 every 6, three copies of the first frame before, the last repeated after."""
    stacked = []
    for i in range(-(-len(frames) // 6)):
        wanted = [6 * i + k - 3 for k in range(7)]
        row = np.concatenate([frames[min(max(t, 0), len(frames) - 1)] for t in wanted])
        stacked.append((row + shift) * scale)
    return stacked


def layer_norm(x, weight, bias, eps):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attend(q, k, v, heads):
    out = np.zeros_like(q)
    size = q.shape[1] // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        out[:, part] = softmax(q[:, part] @ k[:, part].T / np.sqrt(size)) @ v[:, part]
    return out


def position(index, dim):
    angle = index * np.exp(-np.arange(dim // 2) * np.log(10000) / (dim / 2 - 1))
    return np.concatenate([np.sin(angle), np.cos(angle)])


def sanm_block(w, name, x, cache, heads):
    """One block over one window; `cache` is the list of earlier keys and values, [at most 16, D] each."""
    normed = layer_norm(x, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], 1e-12)
    fused = normed @ w[f"{name}.self_attn.linear_q_k_v.weight"].T + w[f"{name}.self_attn.linear_q_k_v.bias"]
    q, k, v = np.split(fused, 3, axis=1)
    keys = np.concatenate([cache[0], k])
    values = np.concatenate([cache[1], v])
    attended = attend(q, keys, values, heads)
    attended = attended @ w[f"{name}.self_attn.linear_out.weight"].T + w[f"{name}.self_attn.linear_out.bias"]
    taps = w[f"{name}.self_attn.fsmn_block.weight"][:, 0]
    reach = taps.shape[1] // 2
    for t in range(len(x)):
        memory = v[t].copy()
        for tap in range(taps.shape[1]):
            if 0 <= t + tap - reach < len(x):
                memory += taps[:, tap] * v[t + tap - reach]
        attended[t] += memory
    cache[0] = np.concatenate([cache[0], k[: max(0, len(k) - 5)]])[-16:]
    cache[1] = np.concatenate([cache[1], v[: max(0, len(v) - 5)]])[-16:]
    x = x + attended if x.shape == attended.shape else attended
    normed = layer_norm(x, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], 1e-12)
    hidden = np.maximum(normed @ w[f"{name}.feed_forward.w_1.weight"].T + w[f"{name}.feed_forward.w_1.bias"], 0)
    return x + hidden @ w[f"{name}.feed_forward.w_2.weight"].T + w[f"{name}.feed_forward.w_2.bias"]


def linguistic_codes(samples, w, shift, scale, centroids, *, heads):
    """Chunk after chunk: four new frames, five old ones before them, sixteen cached keys per block."""
    features = low_frame_rate(fbank(samples), shift, scale)
    w = {name.removeprefix("encoder."): tensor.astype(np.float64) for name, tensor in w.items()}
    dim = len(w["after_norm.weight"])
    blocks = ["encoders0.0"] + [f"encoders.{i}" for i in range(len(w)) if f"encoders.{i}.norm1.weight" in w]
    caches = [[np.zeros((0, dim)), np.zeros((0, dim))] for _ in blocks]
    left = np.zeros((5, len(shift)))
    codes = []
    for start in range(0, len(features), 4):
        new = [x * np.sqrt(dim) + position(start + i + 1, len(x)) for i, x in enumerate(features[start : start + 4])]
        window = np.concatenate([left, np.array(new)])
        left = window[-5:]
        y = window
        for name, cache in zip(blocks, caches, strict=True):
            y = sanm_block(w, name, y, cache, heads)
        y = layer_norm(y, w["after_norm.weight"], w["after_norm.bias"], 1e-12)[-len(new) :]
        for row in y:
            codes.append(int(np.argmin(((row - centroids) ** 2).sum(axis=1))))
    return codes


# ------------------------------------------------------------------ semantic


def whisper_mel(samples):
    """Whisper's log-mel, [128, T // 160], with Slaney's filters."""
    breakpoint_mel = 1000 / (200 / 3)

    def hertz(mel):
        return mel * 200 / 3 if mel < breakpoint_mel else 1000 * 6.4 ** ((mel - breakpoint_mel) / 27)

    top = breakpoint_mel + 27 * np.log(8) / np.log(6.4)
    edges = [hertz(top * i / 129) for i in range(130)]
    filters = np.zeros((128, 201))
    for band in range(128):
        left, centre, right = edges[band : band + 3]
        for k in range(201):
            at = k * 40.0
            height = min((at - left) / (centre - left), (right - at) / (right - centre))
            filters[band, k] = max(0, height) * 2 / (right - left)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    x = samples.astype(np.float64)
    x = np.concatenate([x[200:0:-1], x, x[-2:-202:-1]])
    frames = [np.abs(dft @ (x[160 * t : 160 * t + 400] * window)) ** 2 for t in range(len(samples) // 160)]
    log = np.log10(np.maximum(filters @ np.array(frames).T, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


def gelu(x):
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def convolve(x, weight, bias):
    """Kernel 3, stride 2, one zero on each side: [C, T] to [D, floor((T - 1) / 2) + 1]."""
    padded = np.pad(x, ((0, 0), (1, 1)))
    steps = range(0, padded.shape[1] - 2, 2)
    return np.stack([(weight * padded[None, :, t : t + 3]).sum(axis=(1, 2)) + bias for t in steps], axis=1)


def semantic_codes(samples, w, *, blocks):
    """One clip of at most 30 s; `w` by place in the network, linear weights as [in, out]."""
    x = gelu(convolve(whisper_mel(samples), w["conv1.weight"], w["conv1.bias"]))
    x = gelu(convolve(x, w["conv2.weight"], w["conv2.bias"])).T
    x = x + w["positional_embedding"][: len(x)]
    for i in range(blocks):
        p = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in w.items()}
        y = layer_norm(x, p["attn_ln.weight"], p["attn_ln.bias"], 1e-5)
        q, k, v = (
            y @ p["query.weight"] + p["query.bias"],
            y @ p["key.weight"],
            y @ p["value.weight"] + p["value.bias"],
        )
        x = x + attend(q, k, v, x.shape[1] // 64) @ p["out.weight"] + p["out.bias"]
        y = layer_norm(x, p["mlp_ln.weight"], p["mlp_ln.bias"], 1e-5)
        x = x + gelu(y @ p["mlp.0.weight"] + p["mlp.0.bias"]) @ p["mlp.2.weight"] + p["mlp.2.bias"]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return [int(np.argmin(((row[:, None] - w["codebook"]) ** 2).sum(axis=0))) for row in unit]
