"""All that differs on Modal: REPL and workers as Sandboxes, registry and runs in Dicts, contexts in a Volume."""
