"""Numbers about images: arrays and millimetres in, numbers out."""
