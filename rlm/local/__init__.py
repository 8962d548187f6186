"""All that differs on this machine: REPL and workers as subprocesses, the registry in memory."""
