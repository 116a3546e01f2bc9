"""Training: what is optimised (objectives), on what (targets, attribution), and how (loop)."""
