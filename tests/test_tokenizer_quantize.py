import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.tokenizer.packed import pack
from stepaudio.tokenizer.quantize import Codebook, EmaCodebook, FiniteScalarQuantizer


@settings(deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_codebook_is_the_nearest_by_brute_force(seed, normalise):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(9, 5, generator=generator)
    x = torch.randn(20, 5, generator=generator)
    target = x / x.norm(dim=1, keepdim=True) if normalise else x
    expected = [min(range(9), key=lambda k: float((row - vectors[k]).square().sum())) for row in target]
    assert Codebook(vectors, normalise=normalise).encode(x).tolist() == expected


def test_codebook_follows_loaded_vectors():
    codebook = Codebook(torch.zeros(2, 2))
    codebook.load_state_dict({"vectors": torch.tensor([[1.0, 0.0], [0.0, 5.0]])})
    assert codebook.encode(torch.tensor([[0.0, 4.0], [0.0, 0.0]])).tolist() == [1, 0]


def test_ema_without_memory_is_the_mean():
    """With decay 0 one step moves every codeword to the mean of its vectors."""
    codebook = EmaCodebook(2, 1, decay=0.0, restart_below=0.0)
    codebook.load_state_dict(
        {
            "vectors": torch.tensor([[0.0], [10.0]]),
            "count": torch.ones(2),
            "total": torch.tensor([[0.0], [10.0]]),
        }
    )
    x = torch.tensor([[1.0], [2.0], [9.0]], requires_grad=True)
    quantised, codes, commitment = codebook.train()(x)
    assert codes.tolist() == [0, 0, 1]
    assert codebook.vectors.tolist() == [[1.5], [9.0]]
    assert quantised.tolist() == [[1.5], [1.5], [9.0]]
    assert commitment.item() == pytest.approx((0.25 + 0.25 + 0) / 3)
    quantised.sum().backward()
    assert x.grad.tolist() == [[1.0], [1.0], [1.0]]


def test_ema_follows_slowly():
    codebook = EmaCodebook(1, 1, decay=0.9, restart_below=0.0)
    codebook.load_state_dict({"vectors": torch.tensor([[0.0]]), "count": torch.ones(1), "total": torch.zeros(1, 1)})
    codebook.train()(torch.tensor([[1.0]]))
    assert codebook.vectors.item() == pytest.approx(0.1)


def test_dead_codewords_restart_at_vectors_of_the_batch():
    torch.manual_seed(0)
    codebook = EmaCodebook(8, 2, decay=0.5, restart_below=0.1)
    x = torch.randn(64, 2) + 20
    for _ in range(30):
        codebook.train()(x)
    assert len(codebook.encode(x).unique()) == 8


def test_codebook_rests_in_evaluation():
    codebook = EmaCodebook(4, 2).eval()
    before = codebook.vectors.clone()
    codebook(torch.randn(10, 2))
    assert torch.equal(codebook.vectors, before)


def plain_fsq(levels):
    """A quantiser that sees its dimensions as they are."""
    quantizer = FiniteScalarQuantizer(levels, len(levels))
    for layer in (quantizer.project_in, quantizer.project_out):
        layer.load_state_dict({"weight": torch.eye(len(levels)), "bias": torch.zeros(len(levels))})
    return quantizer


@pytest.mark.parametrize("levels", [(3, 3), (8, 8), (4, 5, 2)])
def test_fsq_reaches_every_code(levels):
    quantizer = plain_fsq(levels)
    axes = [torch.linspace(-6, 6, 101)] * len(levels)
    grid = torch.cartesian_prod(*axes) if len(levels) < 3 else torch.cartesian_prod(*(a[::5] for a in axes))
    assert sorted(quantizer.encode(grid).unique().tolist()) == list(range(int(np.prod(levels))))
    assert quantizer.codes == np.prod(levels)


def test_fsq_in_closed_form():
    """Three levels: tanh rounded to -1, 0, 1; the code is a base-3 number, the first digit the fastest."""
    quantizer = plain_fsq((3, 3))
    z = torch.tensor([[-9.0, -9.0], [0.1, -9.0], [9.0, -9.0], [-9.0, 0.0], [9.0, 9.0]])
    assert quantizer.encode(z).tolist() == [0, 1, 2, 3, 8]
    assert quantizer.decode(torch.tensor([8, 3])).tolist() == [[1.0, 1.0], [-1.0, 0.0]]


def test_fsq_decode_is_what_training_saw():
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer((8, 8, 8, 8), 16)
    x = torch.randn(50, 16, requires_grad=True)
    quantised, codes, _ = quantizer(x)
    torch.testing.assert_close(quantizer.decode(codes), quantised)
    assert torch.equal(quantizer.encode(x), codes)
    quantised.sum().backward()
    assert x.grad.abs().sum() > 0


def test_fsq_tells_how_unevenly_its_codes_are_used():
    """Nothing for independent even dimensions, much for one value or for a dimension that repeats another."""
    quantizer = plain_fsq((8, 8))
    reach, offset = 7 * 1.001 / 2, 0.5

    def loss(squashed):
        """Of dimensions that the quantiser's tanh gives, undone by its inverse."""
        return quantizer(torch.atanh(0.999 * squashed) - np.arctanh(offset / reach))[2].item()

    generator = torch.Generator().manual_seed(0)
    even = torch.rand(4000, 2, generator=generator) * 2 - 1
    assert loss(even) < 0.01
    assert loss(torch.zeros(100, 2)) > 0.3
    assert loss(even[:, :1].expand(-1, 2)) > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_give_the_same_numbers(dtype):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(40, 24), torch.nn.Sequential(torch.nn.Linear(24, 8))).to(dtype)
    x = torch.randn(2, 9, 40, dtype=dtype)
    with torch.inference_mode():
        expected = plain(x)
        pack(plain, rows=9)
        torch.testing.assert_close(plain(x), expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
