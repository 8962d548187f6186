"""Modal Sandboxes, whatever runs in them."""
