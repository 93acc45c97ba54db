"""The other engines: how each is obtained, and how it is timed in a process of its own."""
