"""HiFT written out with torch's own layers, whole utterances only, from the tensors of a released file."""

import math

import torch
import torch.nn.functional as F


def weight(tensors, layer):
    """A weight, folded by torch itself where the file has it split."""
    length = f"{layer}.parametrizations.weight.original0"
    if length in tensors:
        return torch._weight_norm(tensors[f"{layer}.parametrizations.weight.original1"], tensors[length], 0)
    return tensors[f"{layer}.weight"]


def conv(tensors, layer, x, **options):
    return F.conv1d(x, weight(tensors, layer), tensors[f"{layer}.bias"], **options)


def pitch(tensors, mel):
    x = mel
    for number in range(5):
        x = F.elu(conv(tensors, f"f0_predictor.condnet.{2 * number}", x, padding=1))
    x = F.linear(x.transpose(1, 2), *(tensors[f"f0_predictor.classifier.{kind}"] for kind in ("weight", "bias")))
    return x.squeeze(-1).abs()


def res_block(tensors, name, x, kernel):
    for number, dilation in enumerate((1, 3, 5)):
        y = snake(tensors[f"{name}.activations1.{number}.alpha"], x)
        y = conv(tensors, f"{name}.convs1.{number}", y, dilation=dilation, padding=dilation * (kernel - 1) // 2)
        y = snake(tensors[f"{name}.activations2.{number}.alpha"], y)
        x = x + conv(tensors, f"{name}.convs2.{number}", y, padding=(kernel - 1) // 2)
    return x


def snake(alpha, x):
    alpha = alpha[None, :, None]
    return x + 1 / (alpha + 1e-9) * torch.sin(alpha * x).pow(2)


def filter(tensors, mel, source, *, rates, source_kernels, kernels=(3, 7, 11)):
    """Samples of mel frames [B, M, F] and their source [B, T]."""
    window = torch.hann_window(16)
    spectrum = torch.stft(source, 16, 4, 16, window, return_complex=True)
    spectrum = torch.cat([spectrum.real, spectrum.imag], 1)
    x = conv(tensors, "conv_pre", mel, padding=3)
    for level, rate in enumerate(rates):
        x = F.leaky_relu(x, 0.1)
        up = weight(tensors, f"ups.{level}")
        x = F.conv_transpose1d(x, up, tensors[f"ups.{level}.bias"], stride=rate, padding=(up.shape[2] - rate) // 2)
        if level == len(rates) - 1:
            x = F.pad(x, (1, 0), mode="reflect")
        below = math.prod(rates[level + 1 :])
        options = {"stride": below, "padding": below // 2} if below > 1 else {}
        fed = conv(tensors, f"source_downs.{level}", spectrum, **options)
        x = x + res_block(tensors, f"source_resblocks.{level}", fed, source_kernels[level])
        blocks = [
            res_block(tensors, f"resblocks.{level * len(kernels) + number}", x, kernel)
            for number, kernel in enumerate(kernels)
        ]
        x = sum(blocks) / len(blocks)
    x = conv(tensors, "conv_post", F.leaky_relu(x, 0.01), padding=3)
    magnitude, phase = torch.exp(x[:, :9]).clip(max=1e2), torch.sin(x[:, 9:])
    spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
    return torch.istft(spectrum, 16, 4, 16, window).clamp(-0.99, 0.99)
