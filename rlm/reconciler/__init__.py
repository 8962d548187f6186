"""Brings what runs on Modal and what the registry says of it together again."""
