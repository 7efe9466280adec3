"""A local page on which one policy acts while one watches (`par-agent play`)."""
