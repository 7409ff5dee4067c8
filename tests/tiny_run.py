"""A whole run in a second: a model of three layers, eight titles, a few steps of training."""

import torch
from tiny import qwen2
from transformers import PreTrainedModel

from recbole_prunerec.data.samples import Samples
from recbole_prunerec.settings import Settings
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = {letter: f"Film {letter}" for letter in "ABCDEFGH"}
TOKENIZER = train_tokenizer(TITLES.values(), 280)
SETTINGS = Settings.model_validate(
    {
        "steps": [
            {"do": "finetune"},
            {"do": "width", "heads": 3, "hidden": 24, "kv_policy": "group"},
            {"do": "mlp", "intermediate": 16},
            {"do": "depth", "layers": 2},
        ],
        "restore": {"epochs": 2},
        "epochs": 2,
        "train_batch_size": 8,
        "calibration_samples": 4,
        "test_rows": 6,
        "step_test_rows": 4,
        "topk": [2, 4],
        "ranking": {"beams": 8},
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "show_progress": False,
        "checkpoint_minutes": 1e-9,  # after every step of training
    }
)


def backbone(seed: int = 0) -> PreTrainedModel:
    """The model that a run starts from."""
    return qwen2(seed, torch.float32, vocab_size=len(TOKENIZER))


def samples() -> Samples:
    """Eight users of seven items, each after its own order."""
    names = list(TITLES)
    return Samples.of({f"u{user}": [names[(user + step * (1 + user % 3)) % 8] for step in range(7)] for user in range(8)}, TITLES, 4)
