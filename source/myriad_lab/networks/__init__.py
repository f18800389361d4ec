"""Networks: plain perceptrons, populations of heads, critics."""
