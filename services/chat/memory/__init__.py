"""The way to the memory service: the context that it gives, and the turns and edits that it is told of."""
