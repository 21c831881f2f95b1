"""What is run to build or release the project; none of it is installed."""
