"""Files that are sent as they are: what a path leads to, what is kept of it, and how it is sent."""
