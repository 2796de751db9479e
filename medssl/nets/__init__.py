"""Networks and parameter-free filters: no loss, no schedule."""
