"""Losses of answers, against cross-entropy in float64 and the first arg-max."""

import torch
from torch.nn.functional import cross_entropy

from workbench.hooks.recording.answer_losses import losses_of


def test_losses_are_cross_entropies_and_the_likeliest_token_is_right():
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (3, 63, 1001):
        logits = 4 * torch.randn(9, vocabulary, generator=generator)
        rows = torch.randint(9, (700,), generator=generator)
        answer = torch.randint(vocabulary, (700,), generator=generator)
        answer[::2] = logits[rows[::2]].argmax(-1)
        loss, is_right = losses_of(logits, rows, answer)
        in_float64 = cross_entropy(logits[rows].double(), answer, reduction="none")
        torch.testing.assert_close(loss, in_float64.float())
        assert torch.equal(is_right, logits[rows].argmax(-1) == answer)


def test_of_equal_logits_the_first_is_the_answer():
    logits = torch.zeros(1, 300, dtype=torch.bfloat16)
    logits[0, [70, 71, 200]] = 5.0
    _, is_right = losses_of(logits, torch.zeros(3, dtype=torch.long), torch.tensor([70, 71, 200]))
    assert is_right.tolist() == [True, False, False]


def test_logits_beyond_the_range_of_exp_have_finite_losses():
    logits = torch.tensor([[3e4, 0.0, -3e4]])
    loss, _ = losses_of(logits, torch.zeros(2, dtype=torch.long), torch.tensor([0, 2]))
    assert loss.tolist() == [0.0, 6e4]


def test_losses_of_a_large_vocabulary_are_those_of_float64():
    logits = 2 * torch.randn(8, 49152, generator=torch.Generator().manual_seed(0))
    answer = torch.arange(8)
    logits[answer, answer] = 13.0
    loss, _ = losses_of(logits, answer, answer)
    assert float((loss - cross_entropy(logits.double(), answer, reduction="none")).abs().max()) < 1e-6
