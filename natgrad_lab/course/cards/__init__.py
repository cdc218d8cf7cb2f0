"""The interactive figures, one file a lesson; each has a tuple CARDS."""
