"""The offline model: a scripted stand-in for an LLM provider, on loopback."""
