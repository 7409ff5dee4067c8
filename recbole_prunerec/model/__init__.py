"""What this package adds to RecBole's models."""
