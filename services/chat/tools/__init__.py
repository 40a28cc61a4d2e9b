"""The tool loop: the rounds of a reply, the tools that are called in them, and what is kept of each call."""
