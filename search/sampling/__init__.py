"""What is tried next, and what is not worth its training: pure decisions, and the samplers made of them."""
