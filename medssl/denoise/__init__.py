"""One paper, one file: noise removal without clean data."""
