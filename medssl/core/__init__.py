"""The words of the trade: torch, numpy and the standard library only."""
