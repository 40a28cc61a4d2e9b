"""What texts mean, as vectors: asked of the provider, kept beside the texts, made anew when the model changes."""
