"""What enters a module of every layer: one plain forward pass a sample, without padding."""

import torch


def samples(batches):
    """The (ids, labels) of each sample, without padding."""
    for batch in batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            yield ids[: mask.sum()][None], labels[: mask.sum()]


@torch.no_grad()
def entering(model, batches, part):
    """[layer][sample]: what enters the module called `part`, (token, width), as an array."""
    seen = [[] for _ in model.model.layers]
    handles = [
        layer.get_submodule(part).register_forward_hook(lambda module, inputs, output, number=number: seen[number].append(inputs[0][0].numpy()))
        for number, layer in enumerate(model.model.layers)
    ]
    for ids, _ in samples(batches):
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return seen


def matrices(model, part):
    """The weight (output, input) of every layer's module called `part`, as an array."""
    return [layer.get_submodule(part).weight.detach().numpy() for layer in model.model.layers]
