"""Lists of words: which messages of a user hold a word, kept for those who have said much."""
