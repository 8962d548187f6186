"""What runs in a REPL's process before its driver: it shuts the door behind itself. Standard library only."""
