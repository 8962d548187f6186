"""The REPL: the host side of the frames, and how the process is launched."""
