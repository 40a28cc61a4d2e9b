"""Facts out of conversations: what the user said of themselves, proposed by a model and checked here."""
