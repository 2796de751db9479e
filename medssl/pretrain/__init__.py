"""One paper, one file: encoders without labels."""
