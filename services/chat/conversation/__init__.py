"""Conversations: their lists and their search, their titles, and what administrators see of them."""
