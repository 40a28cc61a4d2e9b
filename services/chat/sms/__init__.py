"""Text messages, as far as chat has to do with them: that a person wants none, or wants them again."""
