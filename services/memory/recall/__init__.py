"""Finding what is remembered about something: by words, by meaning, by time, and by what stands beside it."""
