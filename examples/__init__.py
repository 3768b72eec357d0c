"""What a user would write: specs, and short programs that use them."""
