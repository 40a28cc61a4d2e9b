"""What replies cost: counted by user, day and model, and bounded by a budget where the operator sets one."""
