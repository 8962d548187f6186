"""How fast the machinery is, against the offline model."""
