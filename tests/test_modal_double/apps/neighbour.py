"""Imported by `work.py` in its containers; added to the Image as Python source."""
