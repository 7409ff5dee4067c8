"""What the recommenders that we compare with are made of: their losses, and what they learn from. No RecBole here; docs/compared.md tells of them."""
