"""The specification as data, and what a judgement is made of."""
