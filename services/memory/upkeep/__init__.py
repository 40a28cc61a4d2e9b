"""Work that is owed on what was remembered: embeddings, facts, summaries. When it is done, not how."""
