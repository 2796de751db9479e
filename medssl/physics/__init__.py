"""What the scanner does: operators, noise laws, variance stabilisation."""
