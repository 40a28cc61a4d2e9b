"""What is known in short: the summary of a conversation that outgrew its context, and that of the person."""
