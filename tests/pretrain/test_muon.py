"""Muon: its update against float64, over the shapes that a model has."""

import pytest
import torch

from workbench.pretrain.muon import Muon, orthogonalised


def gradient(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_update(matrix):
    """Newton-Schulz of one matrix as published, in float64."""
    x = matrix.double()
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (64, 64), (384, 64), (1, 8)])
def test_the_update_has_the_gradients_singular_vectors_and_singular_values_near_one(shape):
    matrix = gradient(*shape)
    update = orthogonalised(matrix[None])[0].double()
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    along = torch.diagonal(u.mT @ update @ vt.mT)
    well_conditioned = s > 0.1 * s.max()
    assert ((along > 0.6) & (along < 1.3))[well_conditioned].all()
    torch.testing.assert_close(u @ torch.diag(along) @ vt, update, rtol=0, atol=1e-4)
    torch.testing.assert_close(update, reference_update(matrix), rtol=0, atol=1e-4)


def test_a_zero_gradient_moves_nothing():
    assert (orthogonalised(torch.zeros(2, 3, 5)) == 0).all()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (2, 10, 6)])
def test_a_step_is_nesterov_momentum_made_orthogonal_and_scaled_by_the_longer_side(shape):
    weight = torch.nn.Parameter(gradient(*shape, seed=1))
    optimiser = Muon([weight], lr=0.1, momentum=0.9)
    expected = weight.detach().double()
    momentum = torch.zeros(shape, dtype=torch.float64)
    for seed in (2, 3):
        weight.grad = gradient(*shape, seed=seed)
        optimiser.step()
        grad = weight.grad.double()
        momentum = 0.9 * momentum + 0.1 * grad
        ahead = (0.9 * momentum + 0.1 * grad).reshape(-1, *shape[-2:])
        update = torch.stack([reference_update(matrix) for matrix in ahead]).reshape(shape)
        expected = expected - 0.1 * 0.2 * 10**0.5 * update
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-5)


def test_weights_of_one_shape_do_not_mix_and_their_order_does_not_matter():
    shapes = [(4, 6), (6, 4), (4, 6), (3, 4, 6), (5, 5)]

    def stepped(order):
        weights = {i: torch.nn.Parameter(torch.zeros(shapes[i])) for i in order}
        for i, weight in weights.items():
            weight.grad = gradient(*shapes[i], seed=i)
        Muon(weights.values(), lr=1.0).step()
        return weights

    together, reversed_ = stepped(range(5)), stepped(reversed(range(5)))
    for i in range(5):
        alone = stepped([i])[i]
        torch.testing.assert_close(together[i], alone)
        torch.testing.assert_close(reversed_[i], alone)


def test_weights_without_a_gradient_stay():
    still, moved = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.eye(2)
    Muon([still, moved], lr=0.1).step()
    assert (still == 1).all()
    assert (moved != 1).any()
