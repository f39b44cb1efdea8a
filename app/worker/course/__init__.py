"""The course of a job from its begin to its end, for each kind."""
