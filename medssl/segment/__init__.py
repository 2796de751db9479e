"""One paper, one file: labels from few labels."""
