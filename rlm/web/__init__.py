"""The HTTPS face."""
