"""Sub-LLM workers: the pool, the client, the registry, the launchers."""
