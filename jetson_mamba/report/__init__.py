"""What the commands find out on this machine, as data: nothing here prints."""
