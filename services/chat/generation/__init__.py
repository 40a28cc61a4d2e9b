"""The generations: the replies that this process writes, their leases, their take-over, and the turns that begin them."""
