"""Amazon's reviews: raw files or RecBole's, the paper's rules over them, and the dataset that is left."""
