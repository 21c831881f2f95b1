"""What the documentation says, held to what the package does."""
