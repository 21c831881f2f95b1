"""Stand-ins for names that other libraries have since removed."""
