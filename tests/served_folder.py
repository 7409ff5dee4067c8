"""The folder of a step as a run leaves it, of a random model and ten items: what recommends on its own."""

from pathlib import Path

import torch
from tiny import qwen2

from recbole_prunerec.backbone.load import save_step
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = ["Heat", "Heat and Dust", "Toy Story", "Heat", "Toy Soldiers", "Amélie", "The Net", "Amélie", "Casino", "The Nutty Professor"]
POPULARITY = [0, 3, 1, 4, 9, 2, 5, 2, 5, 0, 7]
CATALOGUE = Catalogue.build(["[PAD]", *(f"m{item}" for item in range(1, 11))], ["", *TITLES], POPULARITY)
TOKENIZER = train_tokenizer(TITLES, 275)


def write_served(folder: Path, template: str = "list", softmax: str = "vocabulary", catalogue: Catalogue = CATALOGUE) -> Path:
    """Write the folder: model, tokenizer, catalogue, wording and prefix tree."""
    prompts = Prompts(TOKENIZER, catalogue, template, 512)
    save_step(folder, qwen2(0, torch.float32, vocab_size=len(TOKENIZER)), TOKENIZER, prompts.terminators, prompts.prompt([1]))
    prompts.save(folder, softmax)
    return folder
