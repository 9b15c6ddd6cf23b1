"""Reading a trained model: what its layers predict, how its lambdas weigh, and what reaches the head."""
