"""One paper, one file: from k-space to images."""
