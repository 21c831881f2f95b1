"""What changes in each target, declared as a short list of edits at the target's own path.

``copies/`` holds the modified copies of the published releases in a built wheel; they are
generated at release and are not in git.
"""
