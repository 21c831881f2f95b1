"""torch.compile and torch.export over the ops, and over the blocks of real releases."""
