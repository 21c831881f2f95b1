"""What the doctor finds: every cause is made real in a folder of its own."""
