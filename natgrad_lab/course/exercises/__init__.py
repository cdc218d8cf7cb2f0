"""References, properties and wrong answers of the exercises, one file a lesson; each has a tuple EXERCISES."""
