"""What leaves Python: forms, files, and programs that run them."""
