"""The deletion of everything that chat holds of a user who is no more."""
