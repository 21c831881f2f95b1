"""The operations that the modified copies call instead of a compiled extension."""
