"""Hidden states at answer positions, from padded rows without a mask, against each row's own unpadded pass; and that the tests' windows matter."""

import pytest
import torch
from tiny import SLIDING, WINDOW, batch, every_model

from recbole_prunerec.backbone.forward import answer_states
from recbole_prunerec.backbone.softmax import Vocabulary

BATCH = batch(4, prompt=(5, 20), seed=3)
LENGTHS = BATCH["attention_mask"].sum(1).tolist()


def row_by_row(model):
    """(answer, vocab) logits, and targets, of one unpadded sequence after the other."""
    logits, targets = [], []
    for ids, labels, length in zip(BATCH["input_ids"], BATCH["labels"].tolist(), LENGTHS, strict=True):
        at = [t for t in range(length - 1) if labels[t + 1] != -100]
        logits.append(model(input_ids=ids[None, :length]).logits[0, at])
        targets += [labels[t + 1] for t in at]
    return torch.cat(logits), torch.tensor(targets)


@every_model
def test_answer_states_and_their_gradients_equal_those_of_each_row_alone(make):
    assert max(LENGTHS) - min(LENGTHS) > WINDOW < min(LENGTHS)  # some padding sees nothing but padding
    model = make()
    alone, targets = row_by_row(model)
    together = model.get_output_embeddings()(answer_states(model, BATCH, Vocabulary(97)))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    names, weights = zip(*model.named_parameters(), strict=True)
    losses = [torch.nn.functional.cross_entropy(logits, targets) for logits in (together, alone)]
    found, expected = (torch.autograd.grad(loss, weights) for loss in losses)
    for name, mine, theirs in zip(names, found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=lambda message, name=name: f"{name}: {message}")


@torch.no_grad()
@pytest.mark.parametrize("make", SLIDING.values(), ids=SLIDING)
def test_windows_matter_from_their_width_on(make):
    """Else every test of the sliding models would only repeat those of the others."""
    slides, sees = (build(num_hidden_layers=2)(input_ids=BATCH["input_ids"]).logits for build in (make, make.func))
    assert torch.allclose(slides[:, :WINDOW], sees[:, :WINDOW], rtol=0, atol=1e-5)
    assert (slides[:, WINDOW:] - sees[:, WINDOW:]).abs().amax(-1).min() > 0.01
