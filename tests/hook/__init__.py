"""The hook, tested in interpreters of its own with small packages written for the purpose."""
