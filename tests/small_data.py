"""A small dataset in RecBole's atomic files: 40 users, 12 films, ten interactions a user in an order of their own."""

from pathlib import Path

import numpy as np

TITLES = ("Alien", "Brazil", "Casino", "Diva", "Evita", "Fargo", "Gandhi", "Heat", "Ivan", "Jaws", "Kolya", "Lolita")


def write_small(folder: Path, subtitle: str = "") -> None:
    """Write the dataset `small` into `folder`, with the same `subtitle` behind every title."""
    (folder / "small").mkdir(parents=True)
    draw = np.random.default_rng(0)
    clicks = [(user, item, 100 * step + user) for user in range(40) for step, item in enumerate(draw.permutation(12)[:10])]
    rows = "".join(f"u{user}\ti{item}\t{time}\n" for user, item, time in clicks)
    (folder / "small" / "small.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    titles = "".join(f"i{item}\t{title}{subtitle}\n" for item, title in enumerate(TITLES))
    (folder / "small" / "small.item").write_text("item_id:token\ttitle:token_seq\n" + titles)
